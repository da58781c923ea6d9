"""ViTPose (Xu et al. 2022): a ViT whose patches are cut out of a padded image."""

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from vitbackbone.checkpoints.huggingface.fields import Json, NotNative
from vitbackbone.checkpoints.huggingface.records import Network, Pair, Ratio, read_settings
from vitbackbone.checkpoints.huggingface.shared import PLAIN, shared_fields
from vitbackbone.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from vitbackbone.model import ViTConfig

PADDING = 2  # pixels that pad the patch projection (modeling_vitpose_backbone.py)
VITPOSE_EVAL = Preprocess((256, 192), 1.0, "squash", "bilinear", IMAGENET_MEAN, IMAGENET_STD, crop_rounding="down")


class VitPose(Network):
    """The backbone of ViTPose."""

    image_size: Pair = (256, 192)
    mlp_ratio: Ratio = 4
    num_experts: Annotated[int, Field(ge=1, le=1000)] = 1


def read_vitpose(config: Json) -> ViTConfig:
    """Return the configuration of a `vitpose_backbone`. Raises `NotNative` on several experts."""
    settings = read_settings(config, VitPose)
    if settings.num_experts > 1:
        raise NotNative(
            f"config.json has num_experts={settings.num_experts}: ViTPose+ has an MLP for each data set, which is not "
            "supported; want num_experts=1"
        )
    fields = shared_fields(settings)
    fields["mlp_dim"] = int(settings.hidden_size * settings.mlp_ratio)
    fields["resampling"] = replace(PLAIN, as_square="never")  # upstream runs its own size alone
    return ViTConfig(**fields, cls=False, pool="mean", patch_padding=PADDING)
