"""Shifted windows (Liu et al. 2021, "Swin Transformer") on maps of any size.

A map that the window does not divide is padded with zeros, then shifted, so that one mask keeps apart what the shift
brings together, as torchvision and transformers do. timm shifts first and pads after, with the same mask, so that
opposite borders of the image attend to each other.

Axes: `B` batch, `h w` map, `D` width, `p q` window, `v` windows of a map, `N` tokens of a window.
"""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

APART = -100.0  # what the authors add to the logits of tokens that are no neighbours; the weights were trained with it


class WindowBlock(nn.Module):
    """A block of timm's Swin or Swin V2 with its own parameters under their names, and windows for each map's size.

    `by_size`: a map whose shorter side fits in a window is not shifted, and every other is, as the authors build the
    network for each size (microsoft/Swin-Transformer, models/swin_transformer.py). Otherwise the shift is that of the
    size timm built the block for.
    `post_norm`: Swin V2 normalises what a branch returns, Swin what it is given.
    """

    def __init__(self, block: Any, by_size: bool, post_norm: bool) -> None:
        super().__init__()
        self.by_size = by_size
        self.post_norm = post_norm
        self.window_size: tuple[int, int] = block.window_size
        self.shift_size: tuple[int, int] = block.target_shift_size if by_size else block.shift_size
        self.norm1: nn.Module = block.norm1
        self.attn: nn.Module = block.attn
        self.drop_path1: nn.Module = block.drop_path1
        self.norm2: nn.Module = block.norm2
        self.mlp: nn.Module = block.mlp
        self.drop_path2: nn.Module = block.drop_path2

    def forward(self, x: Float[Tensor, "B h w D"]) -> Float[Tensor, "B h w D"]:
        if self.post_norm:
            x = x + self.drop_path1(self.norm1(self.attend(x)))
            return x + self.drop_path2(self.norm2(self.mlp(x)))
        x = x + self.drop_path1(self.attend(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def attend(self, x: Float[Tensor, "B h w D"]) -> Float[Tensor, "B h w D"]:
        """Attention within each window."""
        height, width = x.shape[1:3]
        p, q = self.window_size
        up, left = self.shift(height, width)
        x = F.pad(x, (0, 0, 0, -width % q, 0, -height % p))
        rows, columns = x.shape[1] // p, x.shape[2] // q
        mask = None
        if up or left:
            x = torch.roll(x, (-up, -left), dims=(1, 2))
            mask = self.mask(rows, columns, up, left, x)
        windows = self.attn(rearrange(x, "B (i p) (j q) D -> (B i j) (p q) D", p=p, q=q), mask=mask)
        x = rearrange(windows, "(B i j) (p q) D -> B (i p) (j q) D", i=rows, j=columns, p=p)
        if up or left:
            x = torch.roll(x, (up, left), dims=(1, 2))
        return x[:, :height, :width]

    def shift(self, height: int, width: int) -> tuple[int, int]:
        """How far a map of this size is shifted (up, left)."""
        if self.by_size and min(height, width) <= min(self.window_size):
            return 0, 0
        return self.shift_size

    def mask(self, rows: int, columns: int, up: int, left: int, like: Tensor) -> Float[Tensor, "v N N"]:
        """Added to the logits of a shifted map of `rows` x `columns` windows: what came round from the other border
        is no neighbour."""
        p, q = self.window_size
        below = torch.arange(rows * p, device=like.device) >= rows * p - up
        right = torch.arange(columns * q, device=like.device) >= columns * q - left
        border = rearrange(2 * below[:, None] + right.int(), "(i p) (j q) -> (i j) (p q)", p=p, q=q)
        apart = border[:, :, None] != border[:, None, :]
        return torch.zeros_like(apart, dtype=like.dtype).masked_fill(apart, APART)
