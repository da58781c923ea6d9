"""The parts of a Vision Transformer but for attention.

Axes: `B` batch, `N` tokens, `T` tokens of a row (see `packing.py`), `D` width, `h w` patch grid, `H W` pixels.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.model.attention import Attention, WindowAttention
from vitbackbone.model.config import Resampling, ViTConfig
from vitbackbone.model.packing import Layout
from vitbackbone.model.position import resample, sincos1d, sincos2d

GRIDS = 32  # whose positions are kept: as many as a batch of `extract` may have


class PatchEmbed(nn.Module):
    """Cuts the image into p x p patches and projects each linearly to D: a convolution whose stride is its kernel."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        p = config.patch_size
        self.proj = nn.Conv2d(3, config.dim, kernel_size=p, stride=p, bias=config.patch_bias)

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

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.resampling: Resampling = config.resampling
        shape = (self.grid[0] * self.grid[1], config.dim)
        if config.position == "learned":
            self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))
        else:
            fixed = {"sincos1d": sincos1d, "sincos2d": sincos2d}[config.position]
            self.table = nn.Parameter(fixed(self.grid, config.dim), requires_grad=False)
        self.tables: dict[object, Tensor] | None = None

    def keep(self) -> None:
        """From now on the tables of the latest grids are kept, which is for weights that stay as they are: a change is
        noticed as autograd would notice it, which one through `.data` escapes."""
        self.tables = {}

    def forward(self, grid: tuple[int, int]) -> Float[Tensor, "N D"]:
        if self.tables is None or torch.compiler.is_compiling():
            return resample(self.table, self.grid, grid, self.resampling)
        version = 0 if self.table.is_inference() else self.table._version
        key = (grid, version, self.table.device, self.table.dtype)
        table = self.tables.get(key)
        if table is None:
            with torch.inference_mode(False), torch.no_grad():
                table = resample(self.table, self.grid, grid, self.resampling)
            while len(self.tables) >= GRIDS:
                self.tables.pop(next(iter(self.tables)), None)  # another thread may have taken it
            self.tables[key] = table
        return table


def quick_gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x * sigmoid(1.702 x), what OpenAI's CLIP was trained with (openai/CLIP, clip/model.py)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


class Mlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.dim, config.mlp_dim)
        self.activation = ACTIVATIONS[config.mlp]
        self.fc2 = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.fc2(self.activation(self.fc1(x)))


class SwiGLU(nn.Module):
    """SiLU(gate) * value, then linear (Shazeer 2020). `w12` holds gate and value, stacked (facebookresearch/dinov2,
    layers/swiglu_ffn.py). EVA-02 norms the product."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.w12 = nn.Linear(config.dim, 2 * config.mlp_dim)
        self.norm = nn.LayerNorm(config.mlp_dim, eps=config.norm_eps) if config.mlp_norm else nn.Identity()
        self.w3 = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(self.norm(F.silu(gate) * value))


def mlp(config: ViTConfig) -> Mlp | SwiGLU:
    return SwiGLU(config) if config.mlp == "swiglu" else Mlp(config)


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

    def forward(self, x: Float[Tensor, "B T D"], lengths: Sequence[int]) -> Float[Tensor, "B T D"]:
        """`lengths`: how many tokens each image of a row has."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        kept = x.new_empty(len(x), len(lengths), 1).bernoulli_(keep)
        if len(lengths) > 1:
            kept = kept.repeat_interleave(torch.tensor(lengths, device=x.device), dim=1)
        return x * kept / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class Block(nn.Module):
    """A pre-norm encoder block: attention, then MLP, each on a normalised copy and added to the stream."""

    def __init__(self, config: ViTConfig, index: int) -> None:
        super().__init__()

        def scale() -> nn.Module:
            return LayerScale(config.dim) if config.layer_scale else nn.Identity()

        everywhere = not config.window or index in config.global_blocks
        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attn = Attention(config, config.grid) if everywhere else WindowAttention(config)
        self.ls1 = scale()
        self.norm2 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.mlp = mlp(config)
        self.ls2 = scale()
        self.drop_path = DropPath(config.drop_path * index / max(config.depth - 1, 1))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        layout: Layout,
        mask: Bool[Tensor, "B #heads T T"] | None = None,
        prefix: bool = False,
    ) -> Float[Tensor, "B Q D"]:
        """`layout`: which images each row of tokens holds. `mask`: True where a token attends to another; raises
        `ValueError` where attention stays within windows, and for images of different sizes.
        `prefix`: return only the tokens in front of each image's patches. They attend to all tokens, and all that
        follows is done for them alone.
        """
        mixed = self.attn(self.norm1(x), layout, mask, prefix)
        lengths = layout.lengths(x.shape[1], prefix) if self.training else ()
        x = layout.prefix(x) if prefix else x
        x = x + self.drop_path(self.ls1(mixed), lengths)
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))), lengths)
