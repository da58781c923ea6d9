"""The layout of transformers' ViTDet. Its positions have a slot for the CLS token of pretraining, which is not used."""

from torch import Tensor

from vitbackbone.checkpoints.formats.huggingface import BLOCK, layers
from vitbackbone.checkpoints.rules import Change, Rule, Rules, both, rename


def _without_first(positions: Tensor) -> tuple[Tensor]:
    return (positions[0, 1:],)


VITDET: Rules = (
    *both("embeddings.projection", "patch_embed.proj"),
    Rule(("embeddings.position_embeddings",), ("pos_embed.table",), Change(_without_first)),
    *layers(
        BLOCK,
        {
            "norm1": "norm1",
            "norm2": "norm2",
            "attention.qkv": "attn.qkv",
            "attention.proj": "attn.proj",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        },
    ),
    rename(f"{BLOCK}.attention.rel_pos_h", "blocks.{i}.attn.rel_pos.rows"),
    rename(f"{BLOCK}.attention.rel_pos_w", "blocks.{i}.attn.rel_pos.columns"),
)
