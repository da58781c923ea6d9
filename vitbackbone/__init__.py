"""Features from Vision Transformers: one typed output for every family, right to the digit, at any image size."""

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:  # the public names, and where each is
    from vitbackbone.checkpoints import Checkpoint as Checkpoint
    from vitbackbone.checkpoints import ConversionError as ConversionError
    from vitbackbone.checkpoints import WeightsUnavailable as WeightsUnavailable
    from vitbackbone.checkpoints import export_weights as export_weights
    from vitbackbone.checkpoints import list_backbones as list_backbones
    from vitbackbone.checkpoints import load_backbone as load_backbone
    from vitbackbone.checkpoints import load_checkpoint as load_checkpoint
    from vitbackbone.checkpoints import load_text as load_text
    from vitbackbone.checkpoints import save_pretrained as save_pretrained
    from vitbackbone.contract import Asked as Asked
    from vitbackbone.contract import Attention as Attention
    from vitbackbone.contract import Backbone as Backbone
    from vitbackbone.contract import BackboneModule as BackboneModule
    from vitbackbone.contract import BackboneSpec as BackboneSpec
    from vitbackbone.contract import Features as Features
    from vitbackbone.contract import Fidelity as Fidelity
    from vitbackbone.contract import Geometry as Geometry
    from vitbackbone.contract import Kept as Kept
    from vitbackbone.contract import Pooled as Pooled
    from vitbackbone.contract import Precision as Precision
    from vitbackbone.contract import Prefix as Prefix
    from vitbackbone.contract import Runtime as Runtime
    from vitbackbone.contract import align as align
    from vitbackbone.contract import any_size as any_size
    from vitbackbone.contract import evaluating as evaluating
    from vitbackbone.contract import fingerprint as fingerprint
    from vitbackbone.contract import float32_default as float32_default
    from vitbackbone.contract import pool_cls as pool_cls
    from vitbackbone.contract import pool_mean as pool_mean
    from vitbackbone.contract import stack_maps as stack_maps
    from vitbackbone.evaluation import evaluate as evaluate
    from vitbackbone.files import Record as Record
    from vitbackbone.files import did_you_mean as did_you_mean
    from vitbackbone.files import parse_json as parse_json
    from vitbackbone.files import progress_bar as progress_bar
    from vitbackbone.files import publish as publish
    from vitbackbone.files import publish_text as publish_text
    from vitbackbone.files import publish_together as publish_together
    from vitbackbone.files import read_json as read_json
    from vitbackbone.files import read_together as read_together
    from vitbackbone.images import ImageError as ImageError
    from vitbackbone.images import Photo as Photo
    from vitbackbone.images import Preprocess as Preprocess
    from vitbackbone.images import Sampling as Sampling
    from vitbackbone.images import View as View
    from vitbackbone.images import load_image as load_image
    from vitbackbone.model import ChannelNorm as ChannelNorm
    from vitbackbone.model import Layout as Layout
    from vitbackbone.model import Resampling as Resampling
    from vitbackbone.model import Rotary as Rotary
    from vitbackbone.model import TextConfig as TextConfig
    from vitbackbone.model import TextTower as TextTower
    from vitbackbone.model import ViT as ViT
    from vitbackbone.model import ViTConfig as ViTConfig
    from vitbackbone.model import resize_maps as resize_maps
    from vitbackbone.model import vit_config as vit_config
    from vitbackbone.networks import FusedBackbone as FusedBackbone
    from vitbackbone.networks import FusedPreprocess as FusedPreprocess
    from vitbackbone.networks import Member as Member
    from vitbackbone.networks import TimmBackbone as TimmBackbone
    from vitbackbone.networks import TimmConfig as TimmConfig
    from vitbackbone.networks import TransformersBackbone as TransformersBackbone
    from vitbackbone.networks import TransformersConfig as TransformersConfig
    from vitbackbone.networks import tile as tile
    from vitbackbone.runtime import optimize as optimize
    from vitbackbone.sklearn import ImageFeatures as ImageFeatures
    from vitbackbone.store import FeatureStore as FeatureStore
    from vitbackbone.store import RayCluster as RayCluster
    from vitbackbone.store import embed_batch as embed_batch
    from vitbackbone.store import extract as extract
    from vitbackbone.store import list_inputs as list_inputs
    from vitbackbone.store import verify as verify

__version__ = "0.1.0"


def _names() -> dict[str, list[str]]:
    """Return the names that each package exports here, as the imports above list them."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"{__name__}."):
            package = str(node.module).removeprefix(f"{__name__}.")
            found.setdefault(package, []).extend(alias.name for alias in node.names)
    return found


# A package is imported when one of its names is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names())
