"""AIMv2 (Fini et al. 2024): root mean square norms, gated MLPs and no biases."""

from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.huggingface.processor_classes import CLIP_EVAL
from vitbackbone.checkpoints.huggingface.records import Depth, Epsilon, Heads, Pair, Square, Width, read_tower
from vitbackbone.checkpoints.huggingface.shared import PLAIN, gate
from vitbackbone.images import Preprocess
from vitbackbone.model import ViTConfig

AIMV2_EVAL: Preprocess = CLIP_EVAL


class Aimv2(Square):
    """The vision tower of AIMv2."""

    patch_size: Pair = (14, 14)
    hidden_size: Width = 1024
    num_hidden_layers: Depth = 24
    num_attention_heads: Heads = 8
    intermediate_size: Width = 2816
    hidden_act: str = "silu"
    rms_norm_eps: Epsilon = 1e-5
    qkv_bias: bool = False
    mlp_bias: bool = False
    use_head: bool = True
    is_native: bool = False


def read_aimv2(config: Json) -> ViTConfig:
    """Return the configuration of an `aimv2_vision_model`. `is_native` means positions computed for each size."""
    settings = read_tower(config, Aimv2)
    side = settings.image_size[0] // settings.patch_size[0] * settings.patch_size[0]
    return ViTConfig(
        image_size=(side, side),
        patch_size=settings.patch_size[0],
        channels=settings.num_channels,
        dim=settings.hidden_size,
        depth=settings.num_hidden_layers,
        num_heads=settings.num_attention_heads,
        mlp_dim=settings.intermediate_size,
        mlp=gate(settings.hidden_act),
        embed_norm=True,
        cls=False,
        position="computed2d" if settings.is_native else "learned",
        resampling=PLAIN,
        qkv_bias="qkv" if settings.qkv_bias else "none",
        proj_bias=settings.qkv_bias,
        mlp_bias=settings.mlp_bias,
        norm="rms",
        norm_eps=settings.rms_norm_eps,
        pool="query" if settings.use_head else "mean",
    )
