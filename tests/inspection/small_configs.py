"""Small Vision Transformers of every kind, to count and to describe."""

from dataclasses import replace

from tests.helpers import TINY
from vitbackbone import ViT, ViTConfig
from vitbackbone.model.config import Resampling, Rotary

MAP = replace(TINY, cls=False, pool="mean")
STEM = ((8, 2), (12, 2), (12, 1), (16, 2))
CONFIGS: dict[str, ViTConfig] = {
    "plain": TINY,
    "registers": replace(TINY, num_registers=3, layer_scale=True),
    "mean": MAP,
    "fc_norm": replace(TINY, pool="mean", final_norm=False, fc_norm=True),
    "sincos2d": replace(TINY, position="sincos2d"),
    "no positions": replace(TINY, position="none", qkv_bias="none"),
    "stem": replace(TINY, stem=STEM, num_registers=1),
    "swiglu": replace(TINY, mlp="swiglu", mlp_dim=24, patch_size=4),
    "wide": replace(TINY, dim=48, num_heads=3, mlp_dim=192, position="none"),
    "narrow MLP": replace(TINY, dim=48, num_heads=3, mlp_dim=24, position="none"),
    "wide stem": replace(TINY, dim=48, mlp_dim=192, stem=((64, 2), (64, 4)), position="none"),
    "DINOv3": replace(
        TINY, position="none", rotary=Rotary(100.0, "centred", "halves"), num_registers=2, qkv_bias="none"
    ),
    "EVA-02": replace(
        TINY,
        rotary=Rotary(10000.0, "index", "neighbours"),
        qkv_bias="qv",
        mlp="swiglu",
        mlp_norm=True,
        pool="mean",
        final_norm=False,
        fc_norm=True,
    ),
    "BEiT": replace(TINY, position="none", relative_position="table", qkv_bias="qv"),
    "SAM": replace(
        MAP,
        relative_position="decomposed",
        window=3,
        global_blocks=(1,),
        final_norm=False,
        neck_dim=12,
        pool="neck",
    ),
    "windows alone": replace(MAP, window=3, neck_dim=12),  # and a neck that nothing runs
    "no windows after all": replace(MAP, window=3, global_blocks=(2, 0, 1)),
    "biases everywhere": replace(MAP, relative_position="decomposed"),
    "CLIP": replace(TINY, pre_norm=True, patch_bias=False, mlp="quick_gelu", projection_dim=12),
    "SigLIP": replace(MAP, mlp="gelu_tanh", pool="map"),
    "C-RADIO": replace(
        TINY,
        num_registers=2,
        pool="tokens",
        pool_tokens=(0, 2),
        position_grid=(9, 9),
        resampling=Resampling("bilinear", fit="square"),
    ),
    "Virchow": replace(TINY, num_registers=1, pool="cls_mean", projection_dim=5, patch_padding=2),
    "PE": replace(TINY, pool="map", pool_heads=4, pool_mlp_dim=20, pool_prefix=True),
    "AIMv2": replace(MAP, pool="query", qkv_bias="none"),
    "SwiGLU pooling": replace(MAP, mlp="swiglu", mlp_norm=True, pool="map", projection_dim=5, projection_bias=True),
}


def make(config: ViTConfig) -> ViT:
    return ViT(config).eval().requires_grad_(False)
