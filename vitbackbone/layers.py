"""The parts of a Vision Transformer.

Axes: `B` batch, `N` tokens, `D` width, `h w` patch grid, `H W` pixels.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.config import Resampling, ViTConfig
from vitbackbone.position import resample, sincos1d, sincos2d


class PatchEmbed(nn.Module):
    """Cuts the image into p x p patches and projects each linearly to D: a convolution whose stride is its kernel."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.dim, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        return self.proj(images)


class ConvStem(nn.Module):
    """3x3 convolutions in place of the patch projection, then a 1x1 convolution to D (Xiao et al. 2021, "Early
    convolutions help transformers see better"). Their strides multiply to the patch size."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for out, stride in config.stem:
            layers += [nn.Conv2d(width, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.GELU()]
            width = out
        self.convs = nn.Sequential(*layers)
        self.proj = nn.Conv2d(width, config.dim, kernel_size=1)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        return self.proj(self.convs(images))


class PositionEmbedding(nn.Module):
    """One vector per patch, learned or fixed, resampled to the grid asked for. Covers patches alone: a checkpoint's
    position of the CLS token is a constant, added to that token when the weights are loaded."""

    CACHED_GRIDS = 8  # the tables of the latest grids; one of 64 x 64 at D = 1280 takes 20 MiB

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.resampling: Resampling = config.resampling
        self._cache: dict[tuple[object, ...], Tensor] = {}
        shape = (self.grid[0] * self.grid[1], config.dim)
        if config.position == "learned":
            self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))
        else:
            fixed = {"sincos1d": sincos1d, "sincos2d": sincos2d}[config.position]
            self.table = nn.Parameter(fixed(self.grid, config.dim), requires_grad=False)

    def train(self, mode: bool = True) -> "PositionEmbedding":
        self._cache.clear()
        return super().train(mode)

    def forward(self, grid: tuple[int, int]) -> Float[Tensor, "N D"]:
        if grid == self.grid:
            return self.table
        if torch.is_grad_enabled() and self.table.requires_grad:
            return resample(self.table, self.grid, grid, self.resampling)
        # The version counts in-place changes, such as an optimiser's step or load_state_dict. One through `.data`, as
        # some moving averages make, is not: switching between train and eval mode forgets, too.
        version = 0 if self.table.is_inference() else self.table._version
        key = (grid, self.table.dtype, self.table.device, self.table.data_ptr(), version)
        if key not in self._cache:
            while len(self._cache) >= self.CACHED_GRIDS:
                self._cache.pop(next(iter(self._cache)))
            with torch.inference_mode(False), torch.no_grad():
                self._cache[key] = resample(self.table, self.grid, grid, self.resampling)
        return self._cache[key]


class Attention(nn.Module):
    """Multi-head self-attention. The forward uses torch's fused kernel; `weights` recomputes the map on request."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.dim, config.dim)

    def _split(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "3 B heads N d"]:
        return rearrange(self.qkv(x), "B N (three heads d) -> three B heads N d", three=3, heads=self.num_heads)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        q, k, v = self._split(x)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(x, "B heads N d -> B N (heads d)"))

    def weights(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B heads N N"]:
        """softmax(q kᵀ / √d): row i says how much token i takes from each token."""
        q, k, _ = self._split(x)
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)


class Mlp(nn.Module):
    """Linear, GELU (the exact one), linear."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.dim, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """SiLU(gate) * value, then linear (Shazeer 2020). `fc1` holds gate and value, stacked, as DINOv2's `w12` does."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.dim, 2 * config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (Touvron et al. 2021, CaiT)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, drops a residual branch per image with probability `rate`
    and scales the others so that the expectation stays."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * x.new_empty(len(x), 1, 1).bernoulli_(keep) / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


MLPS: dict[str, type[Mlp] | type[SwiGLU]] = {"gelu": Mlp, "swiglu": SwiGLU}


class Block(nn.Module):
    """A pre-norm encoder block: attention, then MLP, each on a normalised copy and added to the stream."""

    def __init__(self, config: ViTConfig, drop_path: float) -> None:
        super().__init__()

        def scale() -> nn.Module:
            return LayerScale(config.dim) if config.layer_scale else nn.Identity()

        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attn = Attention(config)
        self.ls1 = scale()
        self.norm2 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.mlp = MLPS[config.mlp](config)
        self.ls2 = scale()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
