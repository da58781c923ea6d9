"""Resamplers: learned queries attend to a map of any size and give a fixed number of tokens.

Axes: `B` batch, `D` width, `N` tokens, `Q` queries, `h w` patch grid.
"""

from abc import abstractmethod

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from heads.base import Head, Needs
from heads.options import Count
from vitbackbone import BackboneSpec, Features


class PoolingHead(Head):
    """A head whose output has the same size for every grid. A subclass defines `pool`.

    Images of different grids are run one by one, so that padding has no influence.
    """

    @abstractmethod
    def pool(self, features: Features) -> Float[Tensor, "B ..."]:
        """Return the output for images that all have the same grid."""

    def forward(self, features: Features) -> Float[Tensor, "B ..."]:
        if features.geometry.one_size or len(set(features.geometry.grids)) < 2:
            return self.pool(features)
        return torch.cat([self.pool(features.image(i)) for i in range(len(features.patches))])


class PerceiverResampler(PoolingHead):
    """Learned latents that attend to the patches and to each other, layer after layer: (B, Q, D).

    (Alayrac et al. 2022, "Flamingo"; mlfoundations/open_flamingo, src/helpers.py)

    Each layer computes latents += attention(latents, [patches, latents]) and latents += MLP(latents). A norm follows
    the last layer. Only the norms have biases. Frames of a video are run one by one, without time embeddings.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        num_latents: Count = 64,
        depth: Count = 6,
        num_heads: Count = 8,
        head_dim: Count = 64,
        layer: int = -1,
        norm: bool = True,
    ) -> None:
        super().__init__(spec, Needs((layer,), norm, pooled=False))
        dim = spec.dims[self.layers[0]]
        self.latents = nn.Parameter(torch.randn(num_latents, dim))
        self.blocks = nn.ModuleList(_ResamplerBlock(dim, num_heads, head_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def pool(self, features: Features) -> Float[Tensor, "B Q D"]:
        tokens = features.tokens
        latents = self.latents.expand(tokens.shape[0], -1, -1)
        for block in self.blocks:
            latents = block(latents, tokens)
        return self.norm(latents)


class _ResamplerBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_tokens = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.kv = nn.Linear(dim, 2 * num_heads * head_dim, bias=False)
        self.proj = nn.Linear(num_heads * head_dim, dim, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim, bias=False), nn.GELU(), nn.Linear(4 * dim, dim, bias=False)
        )

    def forward(self, latents: Float[Tensor, "B Q D"], tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B Q D"]:
        queries = self.norm_latents(latents)
        k, v = self.kv(torch.cat([self.norm_tokens(tokens), queries], dim=1)).chunk(2, dim=-1)
        latents = latents + self.proj(_attend(self.q(queries), k, v, self.num_heads))
        return latents + self.mlp(latents)


class MapPool(PoolingHead):
    """Multi-head attention pooling with one learned query: (B, D).

    (Lee et al. 2019, "Set transformer"; in the form of octo-models/octo, octo/model/components/transformer.py, MAPHead)

    With y = attention(query, patches), the output is y + MLP(norm(y)). The initialisation is Xavier's, as in Octo.
    Raises `ValueError` unless `num_heads` divides D.
    """

    def __init__(self, spec: BackboneSpec, num_heads: Count = 8, layer: int = -1, norm: bool = True) -> None:
        super().__init__(spec, Needs((layer,), norm, pooled=False))
        dim = spec.dims[self.layers[0]]
        if dim % num_heads:
            raise ValueError(f"MapPool: num_heads={num_heads} does not divide {dim}, the width of {spec.name}")
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.empty(1, 1, dim))
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.norm = nn.LayerNorm(dim, eps=1e-6)  # Flax's default, as is the tanh form of GELU
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def pool(self, features: Features) -> Float[Tensor, "B D"]:
        tokens = features.tokens
        q = self.q(self.query).expand(tokens.shape[0], -1, -1)
        x = self.proj(_attend(q, self.k(tokens), self.v(tokens), self.num_heads))[:, 0]
        return x + self.mlp(self.norm(x))


def _attend(
    q: Float[Tensor, "B Q D"], k: Float[Tensor, "B N D"], v: Float[Tensor, "B N D"], num_heads: int
) -> Float[Tensor, "B Q D"]:
    q, k, v = (rearrange(x, "B n (heads d) -> B heads n d", heads=num_heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "B heads n d -> B n (heads d)")
