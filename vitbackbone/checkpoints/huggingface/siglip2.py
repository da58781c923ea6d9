"""SigLIP 2 NaFlex: SigLIP with linear patches, for images of any aspect with a budget of patches."""

import math
from typing import Annotated

from pydantic import Field

from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.huggingface.records import Network, read_tower
from vitbackbone.checkpoints.huggingface.shared import shared_fields
from vitbackbone.images import HALF, Preprocess
from vitbackbone.model import Resampling, ViTConfig

NAFLEX_EVAL = Preprocess(
    (256, 256),
    1.0,
    "patches",
    "bilinear",
    HALF,
    HALF,
    crop_rounding="down",
    multiple=16,
    most_pixels=256**2,
)
NAFLEX_RESAMPLING = Resampling("bilinear", antialias=True)


class Siglip2(Network):
    """The vision tower of SigLIP 2 NaFlex. It has no image size, but a square of positions."""

    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-6
    num_patches: Annotated[int, Field(ge=1, le=1 << 20)] = 256
    vision_use_head: bool = True


def read_siglip2(config: Json) -> ViTConfig:
    """Return the configuration of a `siglip2_vision_model`. Raises `ValueError` if the positions are not square."""
    settings = read_tower(config, Siglip2)
    side = math.isqrt(settings.num_patches)
    if side**2 != settings.num_patches:
        raise ValueError(f"config.json has num_patches={settings.num_patches}; want the square of a whole number")
    fields = shared_fields(settings)
    fields["image_size"] = (side * fields["patch_size"],) * 2
    fields["resampling"] = NAFLEX_RESAMPLING
    return ViTConfig(**fields, cls=False, pool="map" if settings.vision_use_head else "mean")
