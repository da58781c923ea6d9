"""Poolings of checkpoints: prefix tokens, a mean of patches, both, attention (SigLIP), or the mean of a neck (SAM).

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
from vitbackbone.model.norms import make_norm


@dataclass(frozen=True)
class Pooling:
    """A checkpoint's own pooling: one vector an image, then a norm and a projection."""

    vector: Callable[[Features], Tensor]
    norm: nn.Module
    projection: nn.Module

    def __call__(self, features: Features) -> Float[Tensor, "B P"]:
        return self.projection(self.norm(self.vector(features)))


PrefixPool = Callable[[Float[Tensor, "B P D"]], Float[Tensor, "B V"]]


def from_prefix(config: ViTConfig) -> PrefixPool | None:
    """Return the pooling of a configuration as a function of the prefix tokens, or None if it reads patches too."""
    if config.pool == "cls":
        return SideBySide((0,))
    if config.pool == "tokens":
        return SideBySide(config.pool_tokens)
    return _mean if config.pool == "prefix" else None


@dataclass(frozen=True)
class SideBySide:
    """A pooling of some prefix tokens. Two with the same indices are equal, as trees of equal structure require."""

    indices: tuple[int, ...]

    def __call__(self, prefix: Float[Tensor, "B P D"]) -> Float[Tensor, "B V"]:
        return torch.cat([prefix[:, index] for index in self.indices], dim=1)


def _mean(prefix: Float[Tensor, "B P D"]) -> Float[Tensor, "B D"]:
    return prefix.mean(dim=1)


@dataclass(frozen=True)
class PrefixVector:
    """A pooling that reads only CLS and the registers, in this order."""

    pool: PrefixPool

    def __call__(self, features: Features) -> Float[Tensor, "B V"]:
        return self.pool(prefix_of(features))


def prefix_of(features: Features) -> Float[Tensor, "B P D"]:
    """Return CLS, if there is one, and the registers."""
    cls = [] if features.cls is None else [features.cls[:, None]]
    return torch.cat([*cls, features.registers], dim=1)


def pool_cls_and_mean(features: Features) -> Float[Tensor, "B V"]:
    """Return CLS and the mean of the patches side by side (Vorontsov et al. 2023, Virchow)."""
    return torch.cat([pool_cls(features), pool_mean(features)], dim=1)


VECTORS: dict[str, Callable[[Features], Tensor]] = {"mean": pool_mean, "cls_mean": pool_cls_and_mean}


class AttentionPool(nn.Module):
    """Attention pooling: one learned query attends to the patches, and an MLP with a residual follows.

    Lee et al. 2019, "Set transformer"; google-research/big_vision, models/vit.py, MAPHead. With `pool="query"`, the
    query is not projected and no MLP follows (apple/ml-aim, AttentionPoolingClassifier); a norm may (CoCa, Yu et al.
    2022).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        whole = config.pool == "map"
        self.num_heads = config.pool_heads or config.num_heads
        self.reads_prefix = config.pool_prefix
        width = config.pool_dim or config.dim
        self.latent = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.q = nn.Linear(width, width) if whole else nn.Identity()
        self.kv = nn.Linear(config.dim, 2 * width, bias=whole or config.qkv_bias == "qkv")
        self.proj = nn.Linear(width, width)
        self.norm = make_norm(config, width) if whole or config.pool_norm else None
        self.mlp = mlp(replace(config, mlp_dim=config.pool_mlp_dim or config.mlp_dim)) if whole else None

    def forward(self, features: Features) -> Float[Tensor, "B V"]:
        tokens = features.tokens
        if self.reads_prefix:
            tokens = torch.cat([prefix_of(features), tokens], dim=1)
        q = rearrange(self.q(self.latent), "1 one (heads d) -> 1 heads one d", heads=self.num_heads)
        k, v = rearrange(self.kv(tokens), "B N (two heads d) -> two B heads N d", two=2, heads=self.num_heads)
        x = F.scaled_dot_product_attention(q.expand(k.shape[0], -1, -1, -1), k, v)
        x = self.proj(rearrange(x, "B heads one d -> B one (heads d)"))
        normed = x if self.norm is None else self.norm(x)
        return (normed if self.mlp is None else x + self.mlp(normed))[:, 0]


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
