"""The parts of a Vision Transformer, except attention and pooling.

Axes: `B` batch, `N` tokens, `T` tokens of a row (see `packing.py`), `D` width, `h w` patch grid, `H W` pixels.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.model.attention import SelfAttention, WindowAttention
from vitbackbone.model.config import Resampling, ViTConfig
from vitbackbone.model.packing import Layout
from vitbackbone.model.position import resample, sincos1d, sincos2d

GRIDS = 32  # number of grids whose positions are kept: a batch of `extract` has at most this many


class PatchEmbed(nn.Module):
    """The linear projection of p x p patches to width D, as a convolution whose stride equals its kernel size."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        p = config.patch_size
        self.proj = nn.Conv2d(3, config.dim, kernel_size=p, stride=p, bias=config.patch_bias)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        return self.proj(images)


class ConvStem(nn.Module):
    """3x3 convolutions and a 1x1 convolution to width D, which replace the patch projection.

    The strides multiply to the patch size (Xiao et al. 2021, "Early convolutions help transformers see better").
    """

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
    """The position vectors of the patches, learned or fixed, resampled to the requested grid.

    The CLS token has none: when weights are loaded, its position is added to the token itself.
    """

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
        """Cache the tables of the latest grids, for weights that do not change.

        In-place changes invalidate the cache; edits through `.data` do not.
        """
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
    """Return x * sigmoid(1.702 x), the activation of OpenAI's CLIP (openai/CLIP, clip/model.py)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": F.relu,
}


class Mlp(nn.Module):
    """An MLP of two linear layers with an activation between them."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.dim, config.mlp_dim)
        self.activation = ACTIVATIONS[config.mlp]
        self.fc2 = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.fc2(self.activation(self.fc1(x)))


class SwiGLU(nn.Module):
    """A gated MLP: SiLU(gate) * value, then a linear layer (Shazeer 2020).

    `w12` computes gate and value in one product (facebookresearch/dinov2, layers/swiglu_ffn.py). EVA-02 normalises
    SiLU(gate) * value.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.w12 = nn.Linear(config.dim, 2 * config.mlp_dim)
        self.norm = nn.LayerNorm(config.mlp_dim, eps=config.norm_eps) if config.mlp_norm else nn.Identity()
        self.w3 = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(self.norm(F.silu(gate) * value))


def mlp(config: ViTConfig) -> Mlp | SwiGLU:
    """Build the MLP of a configuration."""
    return SwiGLU(config) if config.mlp == "swiglu" else Mlp(config)


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (Touvron et al. 2021, CaiT)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016).

    In training, each image drops the residual branch with probability `rate`. Kept branches are scaled by
    1 / (1 - rate), so that the expectation does not change.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "B T D"], lengths: Sequence[int]) -> Float[Tensor, "B T D"]:
        """Drop and scale. `lengths`: the number of tokens of each image of a row."""
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
    """A pre-norm encoder block: attention and then an MLP, each with its own norm and residual connection."""

    def __init__(self, config: ViTConfig, index: int) -> None:
        super().__init__()

        def scale() -> nn.Module:
            return LayerScale(config.dim) if config.layer_scale else nn.Identity()

        everywhere = not config.window or index in config.global_blocks
        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attn = SelfAttention(config, config.grid) if everywhere else WindowAttention(config)
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
        """Return the tokens after the block.

        `layout`: the images of each row of tokens.
        `mask`: True where a token attends to another. Raises `ValueError` if attention stays within windows, or if the
        images have different sizes.
        `prefix`: return only the prefix tokens. They attend to all tokens, and the rest of the block runs for them
        alone.
        """
        lengths = layout.lengths(x.shape[1], prefix) if self.training else ()
        stream = layout.prefix(x) if prefix else x
        # The output of attention has no name, so that its memory is free during the MLP.
        x = stream + self.drop_path(self.ls1(self.attn(self.norm1(x), layout, mask, prefix)), lengths)
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))), lengths)
