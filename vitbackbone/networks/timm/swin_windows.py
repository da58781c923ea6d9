"""Shifted windows (Liu et al. 2021, "Swin Transformer") on maps of any size.

A map that the window does not divide is padded with zeros and then shifted, as in torchvision and transformers. The
mask then separates the opposite borders that the shift brings together. timm shifts first and pads after, with the same
mask. There, opposite borders of the image attend to each other.

Axes: `B` batch, `h w` map, `D` width, `p q` window size, `v` windows of a map, `M` windows of a batch, `N` tokens of a
window.
"""

import math
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.networks.timm.private import COSINE_ATTENTION, SWIN_BLOCK, require

APART = -100.0  # added to the logits of tokens from opposite borders, as when the weights were trained
LARGEST_SCALE = math.log(
    100.0
)  # largest logarithm of the factor on cosines (Liu et al. 2022, "Swin Transformer V2", section 3.3)


class WindowBlock(nn.Module):
    """A block of timm's Swin or Swin V2 that accepts maps of any size. Parameters keep their names.

    `by_size`: shift every map whose shorter side is longer than a window, as the authors' code does when it is built
    for that size (microsoft/Swin-Transformer, models/swin_transformer.py). Otherwise every map has the shift that timm
    chose when it built the block.
    `post_norm`: normalise the output of each branch (Swin V2), and not its input (Swin).
    """

    def __init__(self, block: Any, by_size: bool, post_norm: bool) -> None:
        super().__init__()
        require(block, SWIN_BLOCK)
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
        """Return the attention within each window, on the map's own grid."""
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
        """Return the shift (up, left) of a map of this size, in patches."""
        if self.by_size and min(height, width) <= min(self.window_size):
            return 0, 0
        return self.shift_size

    def mask(self, rows: int, columns: int, up: int, left: int, like: Tensor) -> Float[Tensor, "v N N"]:
        """Return the bias on the logits of a shifted map of `rows` x `columns` windows.

        It is `APART` between tokens that come from opposite borders of the map, and 0 elsewhere.
        """
        p, q = self.window_size
        below = torch.arange(rows * p, device=like.device) >= rows * p - up
        right = torch.arange(columns * q, device=like.device) >= columns * q - left
        border = rearrange(2 * below[:, None] + right.int(), "(i p) (j q) -> (i j) (p q)", p=p, q=q)
        apart = border[:, :, None] != border[:, None, :]
        return torch.zeros_like(apart, dtype=like.dtype).masked_fill(apart, APART)


class CosineAttention(nn.Module):
    """The cosine attention of timm's Swin V2, finite in every dtype. Parameters keep their names.

    Queries and keys are scaled to unit length in float32 or wider. In half precision, torch's smallest length of 1e-12
    rounds to 0. timm then divides by 0 where a vector is zero, such as each key of a window's padding.
    """

    qkv: nn.Linear
    q_bias: Tensor | None
    k_bias: Tensor
    v_bias: Tensor | None
    logit_scale: Tensor
    cpb_mlp: nn.Module
    relative_coords_table: Tensor
    relative_position_index: Tensor
    attn_drop: nn.Module
    proj: nn.Module
    proj_drop: nn.Module

    def __init__(self, attention: Any) -> None:
        super().__init__()
        require(attention, COSINE_ATTENTION)
        self.num_heads: int = attention.num_heads
        self.qkv_bias_separate: bool = attention.qkv_bias_separate
        for name, parameter in attention.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name in ("q_bias", "v_bias"):
            if getattr(attention, name) is None:
                self.register_parameter(name, None)
        for name, buffer in attention.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=name in attention.state_dict())
        for name, module in attention.named_children():
            self.add_module(name, module)

    def forward(self, x: Float[Tensor, "M N D"], mask: Float[Tensor, "v N N"] | None = None) -> Float[Tensor, "M N D"]:
        """Attend within each window. `mask` is added to the logits of each image's windows."""
        q, k, v = rearrange(self._project(x), "M N (three heads d) -> three M heads N d", three=3, heads=self.num_heads)
        scale = self.logit_scale.clamp(max=LARGEST_SCALE).exp()
        logits = _unit(q) @ _unit(k).transpose(-2, -1) * scale + self._bias()
        if mask is not None:
            windows = rearrange(logits, "(B v) heads N K -> B v heads N K", v=len(mask)) + mask[:, None]
            logits = windows.flatten(0, 1)
        weights = self.attn_drop(logits.softmax(dim=-1).to(v.dtype))
        return self.proj_drop(self.proj(rearrange(weights @ v, "M heads N d -> M N (heads d)")))

    def _project(self, x: Float[Tensor, "M N D"]) -> Float[Tensor, "M N D3"]:
        """Return queries, keys and values, concatenated. Keys have no bias."""
        if self.q_bias is None or self.v_bias is None:
            return self.qkv(x)
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        return self.qkv(x) + bias if self.qkv_bias_separate else F.linear(x, self.qkv.weight, bias)

    def _bias(self) -> Float[Tensor, "heads N N"]:
        """Return the bias of each pair of places in a window."""
        table = self.cpb_mlp(self.relative_coords_table).flatten(0, -2)
        return 16 * torch.sigmoid(rearrange(table[self.relative_position_index], "q k heads -> heads q k"))


def _unit(x: Float[Tensor, "*axes d"]) -> Float[Tensor, "*axes d"]:
    """Scale vectors to length 1, and keep zero vectors."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1).to(x.dtype)
