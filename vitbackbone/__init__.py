"""Features out of Vision Transformers: one typed output for every family, right to the digit, at any image size."""

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:  # the public names, and where each is
    from .checkpoints import Checkpoint as Checkpoint
    from .checkpoints import ConversionError as ConversionError
    from .checkpoints import WeightsUnavailable as WeightsUnavailable
    from .checkpoints import export_weights as export_weights
    from .checkpoints import list_backbones as list_backbones
    from .checkpoints import load_backbone as load_backbone
    from .checkpoints import load_checkpoint as load_checkpoint
    from .checkpoints import load_text as load_text
    from .checkpoints import save_pretrained as save_pretrained
    from .contract import Asked as Asked
    from .contract import Attention as Attention
    from .contract import Backbone as Backbone
    from .contract import BackboneModule as BackboneModule
    from .contract import BackboneSpec as BackboneSpec
    from .contract import Features as Features
    from .contract import Fidelity as Fidelity
    from .contract import Geometry as Geometry
    from .contract import Pooled as Pooled
    from .contract import Precision as Precision
    from .contract import Prefix as Prefix
    from .contract import Runtime as Runtime
    from .contract import align as align
    from .contract import any_size as any_size
    from .contract import evaluating as evaluating
    from .contract import fingerprint as fingerprint
    from .contract import float32_default as float32_default
    from .contract import pool_cls as pool_cls
    from .contract import pool_mean as pool_mean
    from .contract import stack_maps as stack_maps
    from .evaluation import evaluate as evaluate
    from .files import Record as Record
    from .files import did_you_mean as did_you_mean
    from .files import parse_json as parse_json
    from .files import progress_bar as progress_bar
    from .files import publish as publish
    from .files import publish_text as publish_text
    from .files import publish_together as publish_together
    from .files import read_json as read_json
    from .files import read_together as read_together
    from .images import ImageError as ImageError
    from .images import Photo as Photo
    from .images import Preprocess as Preprocess
    from .images import View as View
    from .images import load_image as load_image
    from .model import ChannelNorm as ChannelNorm
    from .model import Kept as Kept
    from .model import Layout as Layout
    from .model import Resampling as Resampling
    from .model import Rotary as Rotary
    from .model import TextConfig as TextConfig
    from .model import TextTower as TextTower
    from .model import ViT as ViT
    from .model import ViTConfig as ViTConfig
    from .model import resize_maps as resize_maps
    from .model import vit_config as vit_config
    from .networks import FusedBackbone as FusedBackbone
    from .networks import FusedPreprocess as FusedPreprocess
    from .networks import Member as Member
    from .networks import TimmBackbone as TimmBackbone
    from .networks import TimmConfig as TimmConfig
    from .networks import TransformersBackbone as TransformersBackbone
    from .networks import TransformersConfig as TransformersConfig
    from .networks import tile as tile
    from .runtime import optimize as optimize
    from .sklearn import ImageFeatures as ImageFeatures
    from .store import FeatureStore as FeatureStore
    from .store import embed_batch as embed_batch
    from .store import extract as extract
    from .store import list_inputs as list_inputs
    from .store import verify as verify

__version__ = "0.1.0"


def _names() -> dict[str, list[str]]:
    """Return the names that each package exports here, as the imports above list them."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found.setdefault(str(node.module), []).extend(alias.name for alias in node.names)
    return found


# A package is imported when one of its names is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names())
