"""The layouts of V-JEPA 2 in transformers, and of V-JEPA 2 and 2.1 in the authors' files."""

from torch import Tensor

from vitbackbone.checkpoints.formats.changes import qkv
from vitbackbone.checkpoints.formats.timm import BLOCK, MLP, QKV
from vitbackbone.checkpoints.rules import Change, Rule, Rules, both, drop, rename

_LAYER, _OURS = "layer.{i}", "blocks.{i}"
# Relative to the encoder
VJEPA2: Rules = (
    *both("embeddings.patch_embeddings.proj", "patch_embed.proj"),
    *qkv(f"{_LAYER}.attention.", ("query", "key", "value"), f"{_OURS}.attn"),
    *both(f"{_LAYER}.attention.proj", f"{_OURS}.attn.proj"),
    *both(f"{_LAYER}.norm1", f"{_OURS}.norm1"),
    *both(f"{_LAYER}.norm2", f"{_OURS}.norm2"),
    *both(f"{_LAYER}.mlp.fc1", f"{_OURS}.mlp.fc1"),
    *both(f"{_LAYER}.mlp.fc2", f"{_OURS}.mlp.fc2"),
    *both("layernorm", "norm"),
)

# The authors' files (facebookresearch/vjepa2, src/models/vision_transformer.py), relative to `encoder.module.backbone.`
_BLOCKS: Rules = (*BLOCK, *QKV, *MLP)
AUTHORS: Rules = (
    *both("patch_embed.proj", "patch_embed.proj"),
    *_BLOCKS,
    *both("norm", "norm"),
    drop("pos_embed"),  # sinusoids, which rotary positions replace
)


def _fold(bias: Tensor, kind: Tensor) -> tuple[Tensor]:
    return (bias + kind.flatten(),)


# (D,) and (1, 1, D): the vector that tells clips from images is added to the bias of the projection
FOLD_KIND = Change(_fold)


# app/vjepa_2_1/models/vision_transformer.py, by the number of blocks
TAPS = {12: (2, 5, 8), 24: (5, 11, 17), 40: (9, 19, 29), 48: (11, 23, 37)}
_EMBED: Rules = (
    rename("patch_embed.proj.weight", "patch_embed.proj.weight"),
    Rule(("patch_embed.proj.bias", "video_mod_embed"), ("patch_embed.proj.bias",), FOLD_KIND),
    Rule(
        ("patch_embed_img.proj.weight",),
        ("patch_embed.image_proj.weight",),
        Change(lambda kernel: (kernel[:, :, 0],), lambda kernel: (kernel[:, :, None],)),
    ),
    Rule(("patch_embed_img.proj.bias", "img_mod_embed"), ("patch_embed.image_proj.bias",), FOLD_KIND),
)


def _vjepa2_1(taps: tuple[int, ...]) -> Rules:
    norms = [*(f"tap_norms.{index}" for index in taps), "norm"]
    return (*_EMBED, *_BLOCKS, *(rule for i, name in enumerate(norms) for rule in both(f"norms_block.{i}", name)))


VJEPA: dict[str, Rules] = {
    "hf_vjepa2": VJEPA2,
    "vjepa2": AUTHORS,
    **{f"vjepa2_1_{depth}": _vjepa2_1(taps) for depth, taps in TAPS.items()},
}
