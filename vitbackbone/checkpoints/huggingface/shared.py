"""The settings that most model types of transformers share, as fields of `ViTConfig`."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitbackbone.checkpoints.huggingface.fields import NotNative
from vitbackbone.checkpoints.huggingface.records import Network
from vitbackbone.files import SHORT
from vitbackbone.model import AsSquare, MlpKind, Resampling

ACTIVATIONS: dict[str, MlpKind] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}
# Other names in transformers' ACT2FN of the same functions, and of functions that this ViT lacks
SAME = {"gelu_python": "gelu", "gelu_new": "gelu_pytorch_tanh", "gelu_python_tanh": "gelu_pytorch_tanh"}
LACKING = {
    *("gelu_10", "gelu_accurate", "gelu_fast", "laplace", "leaky_relu", "linear", "mish", "prelu", "relu2", "relu6"),
    *("sigmoid", "silu", "swish", "tanh", "xielu"),
}
HIDDEN_ACT = {**{ours: theirs for theirs, ours in ACTIVATIONS.items()}, "swiglu": "silu"}

# How transformers resamples positions (modeling_vit.py, modeling_dinov2.py; modeling_dinov2_with_registers.py).
PLAIN = Resampling("bicubic", antialias=False, relative="bilinear")
ANTIALIASED = Resampling("bicubic", antialias=True, relative="bilinear")


def shared_fields(settings: Network, gated: bool = False) -> dict[str, Any]:
    """Return the settings that every model type has."""
    patch = settings.patch_size[0]
    rows, columns = (side // patch for side in settings.image_size)
    as_square: AsSquare = "never" if rows == columns else "elsewhere"
    return {
        "image_size": (
            rows * patch,
            columns * patch,
        ),  # the size that the positions cover: SigLIP at 384 has 27 patches of 14
        "patch_size": patch,
        "channels": settings.num_channels,
        "dim": settings.hidden_size,
        "depth": settings.num_hidden_layers,
        "num_heads": settings.num_attention_heads,
        "mlp_dim": settings.intermediate_size,
        "mlp": "swiglu" if gated else ungated(settings.hidden_act),
        "qkv_bias": "qkv" if settings.qkv_bias else "none",
        "norm_eps": settings.layer_norm_eps,
        "resampling": replace(PLAIN, as_square=as_square),
    }


def resampled_always(how: Resampling, image_size: tuple[int, int], patch_size: int) -> Resampling:
    """Return the resampling of transformers' classes that resample at every size, even their own.

    Raises `ValueError` if the positions do not fill a square.
    """
    rows, columns = (side // patch_size for side in image_size)
    if rows == columns:
        return how
    if math.isqrt(rows * columns) ** 2 != rows * columns:
        raise ValueError(
            f"config.json has image_size={list(image_size)}, {rows} x {columns} patches. transformers reads these "
            "positions as a square grid and cannot run this model; want as many patches as a square has"
        )
    return replace(how, as_square="always")


GATES: dict[str, MlpKind] = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh"}


def gate(activation: str) -> MlpKind:
    """Return the kind of a gated MLP. Raises `ValueError` on an activation that this ViT lacks."""
    if activation not in GATES:
        raise _unknown(activation, GATES)
    return GATES[activation]


def ungated(activation: str) -> MlpKind:
    """Return the kind of a plain MLP. Raises `ValueError` on an activation that this ViT lacks."""
    name = SAME.get(activation, activation)
    if name not in ACTIVATIONS:
        raise _unknown(activation, ACTIVATIONS)
    return ACTIVATIONS[name]


def _unknown(activation: str, known: Mapping[str, MlpKind]) -> ValueError:
    """Return the error about an activation: `NotNative` if transformers has it."""
    text = f"config.json has hidden_act={SHORT.repr(activation)}; want one of {', '.join(known)}"
    return NotNative(text) if activation in {*LACKING, *ACTIVATIONS, *SAME} else ValueError(text)


def rope_theta(parameters: Mapping[str, Any], alone: float | None = None, default: float = 10000.0) -> float:
    """Return the base of the wavelengths from `rope_parameters`, or from the `rope_theta` of version 4.

    Raises `ValueError` if the parameters ask for another kind of rotary positions than an axis for each half of a head.
    """
    kind = parameters.get("rope_type", parameters.get("type", "axial"))
    if kind not in ("axial", "default", "mrope"):
        raise NotNative(f"config.json has rope_type={SHORT.repr(kind)} in rope_parameters; want 'axial'")
    theta = parameters.get("rope_theta", default if alone is None else alone)
    if isinstance(theta, bool) or not isinstance(theta, int | float) or theta <= 0:
        raise ValueError(f"config.json has rope_theta={SHORT.repr(theta)}; want a number above 0")
    return float(theta)
