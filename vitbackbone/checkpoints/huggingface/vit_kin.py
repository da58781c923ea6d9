"""Model types of transformers that are copied from ViT: ViT-MSN, DPT's own encoder, YOLOS."""

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from vitbackbone.checkpoints.huggingface.fields import Json, NotNative
from vitbackbone.checkpoints.huggingface.records import Epsilon, Network, Pair, read_settings
from vitbackbone.checkpoints.huggingface.shared import PLAIN, resampled_always, shared_fields
from vitbackbone.images import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocess
from vitbackbone.model import Resampling, ViTConfig

DPT_EVAL = Preprocess((384, 384), 1.0, "squash", "bicubic", HALF, HALF, crop_rounding="down")
YOLOS_EVAL = Preprocess((512, 864), 1.0, "squash", "bilinear", IMAGENET_MEAN, IMAGENET_STD, crop_rounding="down")
BILINEAR = Resampling("bilinear", relative="bilinear")


class Msn(Network):
    """ViT-MSN."""

    layer_norm_eps: Epsilon = 1e-6


class Dpt(Network):
    """The encoder that DPT has if it names no other."""

    image_size: Pair = (384, 384)
    is_hybrid: bool = False


class Yolos(Network):
    """YOLOS, whose detection tokens take part in every block."""

    image_size: Pair = (512, 864)
    num_detection_tokens: Annotated[int, Field(ge=1, le=10000)] = 100
    use_mid_position_embeddings: bool = True


def read_msn(config: Json) -> ViTConfig:
    """Return the configuration of a `vit_msn`."""
    return ViTConfig(**shared_fields(read_settings(config, Msn)))


def read_dpt(config: Json) -> ViTConfig:
    """Return the configuration of a `dpt` without a `backbone_config`. Raises `NotNative` on a hybrid one."""
    settings = read_settings(config, Dpt)
    if settings.is_hybrid:
        raise NotNative("config.json has is_hybrid=True: DPT with a ResNet in front of its ViT is not supported")
    fields = shared_fields(settings)
    return ViTConfig(**{**fields, "resampling": resampled_always(BILINEAR, fields["image_size"], fields["patch_size"])})


def read_yolos(config: Json) -> ViTConfig:
    """Return the configuration of a `yolos`, whose detection tokens are registers.

    Raises `NotNative` on positions that are added again after every block.
    """
    settings = read_settings(config, Yolos)
    if settings.use_mid_position_embeddings:
        raise NotNative(
            "config.json has use_mid_position_embeddings=True: positions after every block are not supported; want a "
            "YOLOS without them, such as hustvl/yolos-tiny"
        )
    fields = {**shared_fields(settings), "resampling": replace(PLAIN, as_square="never")}
    return ViTConfig(**fields, num_registers=settings.num_detection_tokens)
