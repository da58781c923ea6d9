"""Poolings of checkpoints: the CLS token, a mean of tokens, attention (SigLIP), or the mean of the neck's map (SAM).

Axes: `B` batch, `D` width, `C` channels of the neck, `h w` patch grid.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.contract import Features, pool_cls, pool_mean
from vitbackbone.model.config import ViTConfig
from vitbackbone.model.layers import mlp
from vitbackbone.model.norms import norm_or_identity


@dataclass(frozen=True)
class Pooling:
    """A checkpoint's own pooling: one vector an image, then a norm and a projection."""

    vector: Callable[[Features], Tensor]
    norm: nn.Module
    projection: nn.Module

    def __call__(self, features: Features) -> Float[Tensor, "B P"]:
        return self.projection(self.norm(self.vector(features)))


def pool_prefix(features: Features) -> Float[Tensor, "B D"]:
    """Return the mean of CLS and the registers. Raises `ValueError` if there is no CLS token."""
    return torch.cat([pool_cls(features)[:, None], features.registers], dim=1).mean(dim=1)


VECTORS: dict[str, Callable[[Features], Tensor]] = {"cls": pool_cls, "prefix": pool_prefix, "mean": pool_mean}


class AttentionPool(nn.Module):
    """Attention pooling: one learned query attends to the patches, and an MLP with a residual follows.

    Lee et al. 2019, "Set transformer"; google-research/big_vision, models/vit.py, MAPHead.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        how = config.map_pool
        self.num_heads = how.num_heads or config.num_heads
        self.prefix = how.prefix
        self.latent = nn.Parameter(torch.randn(1, 1, config.dim) * config.dim**-0.5)
        self.q = nn.Identity() if how.plain else nn.Linear(config.dim, config.dim)
        self.kv = nn.Linear(config.dim, 2 * config.dim, bias=not how.plain or config.qkv_bias != "none")
        self.proj = nn.Linear(config.dim, config.dim)
        self.norm = norm_or_identity(not how.plain, config)
        self.mlp = None if how.plain else mlp(replace(config, mlp_dim=how.mlp_dim or config.mlp_dim))

    def forward(self, features: Features) -> Float[Tensor, "B D"]:
        tokens = features.tokens
        if self.prefix:
            cls = [] if features.cls is None else [features.cls[:, None]]
            tokens = torch.cat([*cls, features.registers, tokens], dim=1)
        q = rearrange(self.q(self.latent), "1 one (heads d) -> 1 heads one d", heads=self.num_heads)
        k, v = rearrange(self.kv(tokens), "B N (two heads d) -> two B heads N d", two=2, heads=self.num_heads)
        x = F.scaled_dot_product_attention(q.expand(k.shape[0], -1, -1, -1), k, v)
        x = self.proj(rearrange(x, "B heads one d -> B one (heads d)"))
        return (x if self.mlp is None else x + self.mlp(self.norm(x)))[:, 0]


class Neck(nn.Sequential):
    """SAM's neck: two convolutions, each with a norm over channels, from the last block's map to the decoder's input.

    facebookresearch/segment-anything, modeling/image_encoder.py.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(
            nn.Conv2d(config.dim, config.neck_dim, kernel_size=1, bias=False),
            ChannelNorm(config.neck_dim),
            nn.Conv2d(config.neck_dim, config.neck_dim, kernel_size=3, padding=1, bias=False),
            ChannelNorm(config.neck_dim),
        )


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel of a map."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class NeckMean:
    """The mean of the neck's map."""

    neck: Neck

    def __call__(self, features: Features) -> Float[Tensor, "B C"]:
        return self.neck(features.patches).mean(dim=(2, 3))
