"""timm's ViT with registers, whose positions cover only the patches, or also the tokens before them."""

import torch
from torch import Tensor

from vitbackbone.checkpoints.formats.changes import FOLD_CLS
from vitbackbone.checkpoints.formats.timm import HEAD, VIT
from vitbackbone.checkpoints.rules import Change, Rule, Rules
from vitbackbone.model import ViTConfig


def _fold(config: ViTConfig) -> Change:
    """Return the change of CLS (1, 1, D), registers (1, R, D) and positions (1, N, D) or (1, 1 + R + N, D)."""
    patches = config.table_grid[0] * config.table_grid[1]

    def there(cls: Tensor, registers: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ahead = positions.shape[1] - patches
        if ahead not in (0, 1 + registers.shape[1]):
            raise ValueError(
                f"there are {positions.shape[1]} positions; want {patches} for the patches, or "
                f"{patches + 1 + registers.shape[1]} with the tokens before them"
            )
        table = positions[0, ahead:]
        if not ahead:
            return cls, registers, table
        return cls + positions[:, :1], registers + positions[:, 1:ahead], table

    def back(cls: Tensor, registers: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        none = torch.zeros_like(torch.cat([cls, registers], dim=1))
        return cls, registers, torch.cat([none, table[None]], dim=1)

    return Change(there, back)


PREFIX: dict[str, Rules] = {
    "timm_prefix": (
        *VIT,
        Rule(("cls_token", "pos_embed"), ("cls_token", "pos_embed.table"), FOLD_CLS),
        Rule(("cls_token", "reg_token", "pos_embed"), ("cls_token", "reg_token", "pos_embed.table"), _fold),
        *HEAD,
    ),
}
