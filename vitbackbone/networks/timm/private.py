"""The classes and attributes of timm that are not part of its public interface, with a check for each.

Every use of such a name goes through this module, so that a timm that renamed one raises an error that says so.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

CLASSES = {
    "ViT block": "timm.models.vision_transformer.Block",
    "ViT attention": "timm.layers.attention.Attention",
    "Swin": "timm.models.swin_transformer.SwinTransformer",
    "Swin V2": "timm.models.swin_transformer_v2.SwinTransformerV2",
    "Swin V2 block": "timm.models.swin_transformer_v2.SwinTransformerV2Block",
    "ConViT attention": "timm.models.convit.GPSA",
    "EfficientFormer attention": "timm.models.efficientformer.Attention",
}

VIT_ATTENTION = ("qkv", "q_norm", "k_norm", "num_heads", "scale")
SWIN_BLOCK = (
    *("window_size", "shift_size", "target_shift_size"),
    *("norm1", "attn", "drop_path1", "norm2", "mlp", "drop_path2"),
)
COSINE_ATTENTION = (
    *("num_heads", "qkv", "qkv_bias_separate", "q_bias", "k_bias", "v_bias", "logit_scale", "cpb_mlp"),
    *("relative_coords_table", "relative_position_index", "attn_drop", "proj", "proj_drop"),
)


def timm_class(name: str) -> type[Any]:
    """Return one of `CLASSES`. Raises `RuntimeError` if the installed timm has no such class."""
    module, _, attribute = CLASSES[name].rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise _changed(CLASSES[name]) from error


def require(part: object, names: Sequence[str]) -> None:
    """Raise `RuntimeError` if a part of a timm network lacks one of the attributes that this package reads."""
    for name in names:
        if not hasattr(part, name):
            raise _changed(f"{type(part).__name__}.{name}")


def _changed(name: str) -> RuntimeError:
    import timm

    return RuntimeError(
        f"timm {timm.__version__} has no {name}, which this package reads; install another timm, from 1.0.31 on"
    )
