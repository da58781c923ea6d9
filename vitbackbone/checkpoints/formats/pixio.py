"""The layout of Pixio: DINOv2's without LayerScale, and with a position for each of its CLS tokens."""

import torch
from torch import Tensor

from vitbackbone.checkpoints.formats.huggingface import BERT, BLOCK, layers
from vitbackbone.checkpoints.rules import Change, Rule, Rules


def _fold(tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    count = tokens.shape[1]
    folded = tokens + positions[:, :count]
    return folded[:, :1], folded[:, 1:], positions[0, count:]


def _unfold(first: Tensor, rest: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    tokens = torch.cat([first, rest], dim=1)
    return tokens, torch.cat([torch.zeros_like(tokens), table[None]], dim=1)


# CLS tokens (1, P, D) and positions (1, P + N, D): the first P positions are added to the tokens
FOLD_SEVERAL = Change(_fold, _unfold)

_TOKENS = ("embeddings.cls_token", "embeddings.position_embeddings")
PIXIO: Rules = (
    *BERT,
    Rule(_TOKENS, ("cls_token", "reg_token", "pos_embed.table"), FOLD_SEVERAL),
    *layers(BLOCK, {"norm1": "norm1", "norm2": "norm2", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"}),
)
