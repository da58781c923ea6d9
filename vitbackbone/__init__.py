"""Features out of Vision Transformers: one typed output for every family, right to the digit, at any image size."""

import importlib
from typing import TYPE_CHECKING, Any

from vitbackbone.align import align
from vitbackbone.config import Resampling, Rotary, ViTConfig, vit_config
from vitbackbone.convert import ConversionError
from vitbackbone.decode import Photo, load_image
from vitbackbone.export import export_weights, save_pretrained
from vitbackbone.features import (
    Asked,
    Attention,
    Backbone,
    BackboneModule,
    BackboneSpec,
    Features,
    Fidelity,
    Geometry,
    Prefix,
    Runtime,
    pool_cls,
    pool_mean,
)
from vitbackbone.fingerprint import fingerprint
from vitbackbone.fused import FusedBackbone, FusedPreprocess, Member
from vitbackbone.load import Checkpoint, WeightsUnavailable, list_backbones, load_backbone, load_checkpoint
from vitbackbone.packing import Layout
from vitbackbone.preprocess import Preprocess, View
from vitbackbone.pytrees import register
from vitbackbone.runtime import optimize
from vitbackbone.tiling import tile
from vitbackbone.timm_adapter import TimmBackbone, TimmConfig
from vitbackbone.tracing import any_size
from vitbackbone.vit import ViT

register()

if TYPE_CHECKING:
    from vitbackbone.estimator import ImageFeatures
    from vitbackbone.extract import FeatureStore, extract

__version__ = "0.1.0"

__all__ = [
    "Asked",
    "Attention",
    "Backbone",
    "BackboneModule",
    "BackboneSpec",
    "Checkpoint",
    "ConversionError",
    "FeatureStore",
    "Features",
    "Fidelity",
    "FusedBackbone",
    "FusedPreprocess",
    "Geometry",
    "ImageFeatures",
    "Layout",
    "Member",
    "Photo",
    "Prefix",
    "Preprocess",
    "Resampling",
    "Rotary",
    "Runtime",
    "TimmBackbone",
    "TimmConfig",
    "ViT",
    "ViTConfig",
    "View",
    "WeightsUnavailable",
    "align",
    "any_size",
    "export_weights",
    "extract",
    "fingerprint",
    "list_backbones",
    "load_backbone",
    "load_checkpoint",
    "load_image",
    "optimize",
    "pool_cls",
    "pool_mean",
    "save_pretrained",
    "tile",
    "vit_config",
]

# Public names whose modules import scikit-learn or pyarrow: loaded on first use, so that `import vitbackbone` is fast.
_LAZY = {
    "FeatureStore": "vitbackbone.extract",
    "ImageFeatures": "vitbackbone.estimator",
    "extract": "vitbackbone.extract",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module = importlib.import_module(_LAZY[name])
        # All of the module's at once: importing it puts the module `extract` where the function is to be.
        globals().update({each: getattr(module, each) for each, home in _LAZY.items() if home == _LAZY[name]})
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
