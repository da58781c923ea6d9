"""ViTDet (Li et al. 2022): a ViT with windows and no CLS token."""

from typing import Annotated

from pydantic import Field

from vitbackbone.checkpoints.huggingface.fields import Json, NotNative
from vitbackbone.checkpoints.huggingface.records import Epsilon, Pair, Ratio, Square, read_settings
from vitbackbone.checkpoints.huggingface.shared import PLAIN, shared_fields
from vitbackbone.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from vitbackbone.model import ViTConfig

VITDET_EVAL = Preprocess((224, 224), 1.0, "squash", "bilinear", IMAGENET_MEAN, IMAGENET_STD, crop_rounding="down")
Blocks = tuple[Annotated[int, Field(ge=0, le=1000)], ...]


class VitDet(Square):
    """ViTDet. Its positions come from pretraining, at another size than the images'."""

    pretrain_image_size: Pair = (224, 224)
    mlp_ratio: Ratio = 4
    layer_norm_eps: Epsilon = 1e-6
    window_block_indices: Blocks = ()
    residual_block_indices: Blocks = ()
    use_absolute_position_embeddings: bool = True
    use_relative_position_embeddings: bool = False
    window_size: Annotated[int, Field(ge=0, le=1 << 14)] = 0


def read_vitdet(config: Json) -> ViTConfig:
    """Return the configuration of a `vitdet`. Raises `NotNative` on convolutions after blocks."""
    settings = read_settings(config, VitDet)
    if settings.residual_block_indices:
        raise NotNative(
            f"config.json has residual_block_indices={list(settings.residual_block_indices)}: convolutions behind "
            "blocks are not supported; want none"
        )
    fields = shared_fields(settings)
    windowed = set(settings.window_block_indices) if settings.window_size else set()
    absolute, patch = settings.use_absolute_position_embeddings, fields["patch_size"]
    height, width = (side // patch for side in settings.pretrain_image_size)
    if absolute and height != width:
        raise ValueError(f"config.json has pretrain_image_size={list(settings.pretrain_image_size)}; want a square")
    return ViTConfig(
        **{**fields, "mlp_dim": int(settings.hidden_size * settings.mlp_ratio), "resampling": PLAIN},
        cls=False,
        position="learned" if absolute else "none",
        position_grid=(height, width) if absolute else None,
        relative_position="decomposed" if settings.use_relative_position_embeddings else "none",
        window=settings.window_size if windowed else 0,
        global_blocks=tuple(i for i in range(settings.num_hidden_layers) if i not in windowed) if windowed else (),
        final_norm=False,
        pool="mean",
    )
