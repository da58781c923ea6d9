"""The layout of YOLOS: ViT's, with detection tokens after the patches and a position for each of them."""

import torch
from torch import Tensor

from vitbackbone.checkpoints.formats.huggingface import BERT, MLP, NORMS
from vitbackbone.checkpoints.rules import Change, Rule, Rules


def _fold(cls: Tensor, detection: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    last = positions.shape[1] - detection.shape[1]
    return cls + positions[:, :1], detection + positions[:, last:], positions[0, 1:last]


def _unfold(cls: Tensor, detection: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    positions = torch.cat([torch.zeros_like(cls), table[None], torch.zeros_like(detection)], dim=1)
    return cls, detection, positions


YOLOS: Rules = (
    *BERT,
    *MLP,
    *NORMS,
    Rule(
        ("embeddings.cls_token", "embeddings.detection_tokens", "embeddings.position_embeddings"),
        ("cls_token", "reg_token", "pos_embed.table"),
        Change(_fold, _unfold),
    ),
)
