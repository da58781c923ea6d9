"""The parts of a Vision Transformer, except attention and pooling.

Axes: `B` batch, `N` tokens, `T` tokens of a row (see `packing.py`), `D` width, `h w` patch grid, `H W` pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.contract import numbers
from vitbackbone.model.attention import SelfAttention, WindowAttention
from vitbackbone.model.clipped import make_linear
from vitbackbone.model.config import Resampling, ViTConfig
from vitbackbone.model.experts import ExpertMlp
from vitbackbone.model.norms import norm_or_identity, plain_norm
from vitbackbone.model.packing import Layout
from vitbackbone.model.positions.ground import ground2d
from vitbackbone.model.positions.resampling import resample
from vitbackbone.model.positions.sincos import computed2d, sincos, sincos1d, sincos2d
from vitbackbone.model.sinks import SinkAttention

GRIDS = 32  # number of grids whose positions are kept: a batch of `extract` has at most this many


class PatchEmbed(nn.Module):
    """The linear projection of p x p patches to width D, as a convolution whose stride equals its kernel size.

    With zeros around the image, the patches lie that much further up and left; their number is the same.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        p = config.patch_size
        self.proj = nn.Conv2d(
            config.channels, config.dim, kernel_size=p, stride=p, padding=config.patch_padding, bias=config.patch_bias
        )

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return self.proj(images)


class ClipEmbed(nn.Module):
    """The linear projection of patches of several frames to width D, as a convolution (Arnab et al. 2021, ViViT).

    Clips are filled up to whole patches with their last frame. An image is a clip of one frame, or has a projection of
    its own.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.frames, p = config.tubelet, config.patch_size
        size, bias = (self.frames, p, p), config.patch_bias
        self.proj = nn.Conv3d(config.channels, config.dim, kernel_size=size, stride=size, bias=bias)
        own = nn.Conv2d(config.channels, config.dim, kernel_size=p, stride=p, bias=bias)
        self.image_proj = own if config.image_patches else None

    def forward(self, images: Float[Tensor, "B *T C H W"]) -> Float[Tensor, "B D *t h w"]:
        if images.ndim == 4:
            return self.clips(images[:, None])[:, :, 0] if self.image_proj is None else self.image_proj(images)
        return self.clips(images)

    def clips(self, frames: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B D t h w"]:
        if missing := -frames.shape[1] % self.frames:
            frames = torch.cat([frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        return self.proj(frames.transpose(1, 2))


class GroupEmbed(nn.Module):
    """The linear projections of the patches of groups of channels, side by side in one convolution (Cong et al. 2022,
    SatMAE). The kernel of a group is zero for the channels of others.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        p, self.groups = config.patch_size, config.channel_groups
        width = self.groups * config.dim
        self.proj = nn.Conv2d(config.channels, width, kernel_size=p, stride=p, bias=config.patch_bias)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D g h w"]:
        return self.proj(images).unflatten(1, (self.groups, -1)).transpose(1, 2)


class ConvStem(nn.Module):
    """3x3 convolutions and a 1x1 convolution to width D, which replace the patch projection.

    The strides multiply to the patch size (Xiao et al. 2021, "Early convolutions help transformers see better").
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = config.channels
        for out, stride in config.stem:
            layers += [nn.Conv2d(width, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.GELU()]
            width = out
        self.convs = nn.Sequential(*layers)
        self.proj = nn.Conv2d(width, config.dim, kernel_size=1)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return self.proj(self.convs(images))


class PositionEmbedding(nn.Module):
    """The position vectors of the patches, learned or fixed, resampled to the requested grid.

    The CLS token has none: when weights are loaded, its position is added to the token itself.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.grid, self.steps = config.table_grid, config.position_steps
        self.resampling: Resampling = config.resampling
        shape = (self.steps * self.grid[0] * self.grid[1], config.dim)
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

    def forward(self, grid: tuple[int, int], like: Tensor | None = None, steps: int = 1) -> Float[Tensor, "N D"]:
        """Return the positions of a grid, like the table on its device and in its precision.

        `steps`: of the map. Every step has the same positions, unless the table has positions for each step. Raises
        `ValueError` if the table is for another number of steps.
        """
        if self.steps not in (1, steps):
            raise ValueError(f"the positions are for {self.steps} steps of the map, and these images have {steps}")
        table = self._kept(grid)
        return table.repeat(steps, 1) if steps > self.steps else table

    def _kept(self, grid: tuple[int, int]) -> Float[Tensor, "N D"]:
        if self.tables is None or torch.compiler.is_compiling():
            return self.at(grid)
        version = 0 if self.table.is_inference() else self.table._version
        key = (grid, version, self.table.device, self.table.dtype)
        table = self.tables.get(key)
        if table is None:
            with torch.inference_mode(False), torch.no_grad():
                table = self.at(grid)
            while len(self.tables) >= GRIDS:
                self.tables.pop(next(iter(self.tables)), None)  # another thread may have taken it
            self.tables[key] = table
        return table

    def at(self, grid: tuple[int, int]) -> Float[Tensor, "N D"]:
        """Make the positions of a grid from the table."""
        if self.steps == 1:
            return resample(self.table, self.grid, grid, self.resampling)
        return torch.cat([resample(step, self.grid, grid, self.resampling) for step in self.table.chunk(self.steps)])


class AxisEmbedding(PositionEmbedding):
    """A learned vector for each row and for each column, whose sum is a patch's position (Gemma 4).

    Raises `ValueError` on a grid with more rows or columns than there are vectors.
    """

    def __init__(self, config: ViTConfig) -> None:
        nn.Module.__init__(self)
        shape = (2, config.axis_positions, config.dim)  # columns, then rows
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))
        self.tables, self.steps = None, 1

    def at(self, grid: tuple[int, int]) -> Float[Tensor, "N D"]:
        """Add the vectors of the rows to the vectors of the columns."""
        (h, w), most = grid, self.table.shape[1]
        if numbers(h, w) and max(grid) > most:
            raise ValueError(f"images have {h} x {w} patches, and there are positions for {most} a side; resize them")
        # Tracers know the size of what an index takes, but not the size of a slice.
        places = (torch.arange(n, device=self.table.device) for n in (w, h))
        columns, rows = (axis[index] for axis, index in zip(self.table, places, strict=True))
        return (rows[:, None] + columns[None]).view(h * w, self.table.shape[2])


class ComputedPositions(nn.Module):
    """Sines and cosines of a patch's column and row, computed for each grid instead of resampled (AIMv2)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.dim = config.dim

    def keep(self) -> None:
        """Do nothing: the tables of the latest grids are always cached."""

    def forward(self, grid: tuple[int, int], like: Tensor | None = None, steps: int = 1) -> Float[Tensor, "N D"]:
        """Return the positions of a grid, on the device and in the precision of `like`; default: float32 on the CPU."""
        table = self.at(grid, torch.device("cpu") if like is None else like.device, steps)
        return table if like is None else table.type_as(like)

    def at(self, grid: tuple[int, int], device: torch.device, steps: int) -> Float[Tensor, "N D"]:
        """Compute the positions of a grid, the same at every step."""
        table = computed2d(grid, self.dim, device)
        return table.repeat(steps, 1) if steps > 1 else table


class GroundPositions(ComputedPositions):
    """Sines and cosines of metres on the ground (Clay)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.metres = config.metres

    def at(self, grid: tuple[int, int], device: torch.device, steps: int) -> Float[Tensor, "N D"]:
        """Compute the positions of a grid."""
        return ground2d(grid, self.dim, self.metres, device)


class ClipPositions(ComputedPositions):
    """Sines and cosines of a patch's column, row and step of time (Jakubik et al. 2023, Prithvi).

    Columns and rows have a table at the native grid, which is resampled to other grids. Time has no table: its steps
    count on.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.grid, self.resampling = config.table_grid, config.resampling

    def at(self, grid: tuple[int, int], device: torch.device, steps: int) -> Float[Tensor, "N D"]:
        """Compute the positions of the patches of all steps, step by step."""
        space = resample(sincos2d(self.grid, self.dim // 16 * 12).to(device), self.grid, grid, self.resampling)
        time = sincos(torch.arange(steps, device=device), self.dim // 16 * 4)
        h, w = grid
        both = [space[None].expand(steps, h * w, -1), time[:, None].expand(steps, h * w, -1)]
        return torch.cat(both, dim=2).flatten(0, 1)


def position_embedding(config: ViTConfig) -> PositionEmbedding | ComputedPositions | None:
    """Build the positions of a configuration; None if it has none."""
    if config.position == "none":
        return None
    if config.position == "clips":
        return ClipPositions(config)
    if config.position in ("computed2d", "ground"):
        return GroundPositions(config) if config.position == "ground" else ComputedPositions(config)
    return AxisEmbedding(config) if config.position == "axes" else PositionEmbedding(config)


def patch_embedding(config: ViTConfig) -> PatchEmbed | ClipEmbed | GroupEmbed | ConvStem:
    """Build the way from images to patch vectors."""
    if config.channel_groups:
        return GroupEmbed(config)
    if config.tubelet:
        return ClipEmbed(config)
    return ConvStem(config) if config.stem else PatchEmbed(config)


def quick_gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return x * sigmoid(1.702 x), the activation of OpenAI's CLIP (openai/CLIP, clip/model.py)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": F.relu,
}
GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu": ACTIVATIONS["gelu"],
    "geglu_tanh": ACTIVATIONS["gelu_tanh"],
}


class Mlp(nn.Module):
    """An MLP of two linear layers with an activation between them."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = make_linear(config, config.dim, [config.mlp_dim], config.mlp_bias)
        self.activation = ACTIVATIONS[config.mlp]
        self.fc2 = make_linear(config, config.mlp_dim, [config.dim], config.mlp_bias)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.fc2(self.activation(self.fc1(x)))


class GatedMlp(nn.Module):
    """A gated MLP: activation(gate) * value, then a linear layer (Shazeer 2020).

    `w12` computes gate and value in one product (facebookresearch/dinov2, layers/swiglu_ffn.py). EVA-02 normalises
    activation(gate) * value.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.w12 = make_linear(config, config.dim, [config.mlp_dim] * 2, config.mlp_bias)
        self.activation = GATES[config.mlp]
        self.norm = norm_or_identity(config.mlp_norm, config, config.mlp_dim)
        self.w3 = make_linear(config, config.mlp_dim, [config.dim], config.mlp_bias)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(self.norm(self.activation(gate) * value))


def mlp(config: ViTConfig) -> Mlp | GatedMlp | ExpertMlp:
    """Build the MLP of a configuration, or its experts."""
    if config.experts is not None:
        return ExpertMlp(config, config.experts, GATES[config.mlp])
    return GatedMlp(config) if config.mlp in GATES else Mlp(config)


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


def attention_settings(config: ViTConfig, index: int) -> ViTConfig:
    """Return the configuration of a block's attention, which differs between blocks if an image is one of `views`."""
    views, rotary = config.views, config.rotary
    if views is None or rotary is None:
        return config
    if index < views.start:
        return replace(config, rotary=None, views=None)
    turned = replace(rotary, coordinates="same") if index % 2 else rotary
    return replace(config, rotary=turned, qk_norm="head", norm_eps=views.norm_eps, views=None)


class Block(nn.Module):
    """An encoder block: attention and then an MLP, each with its own norms and residual connection.

    A norm stands before each (Vision Transformer), behind each (EVA-CLIP's largest), both (Gemma 4), or behind each
    sum with the residual (BERT).
    """

    def __init__(self, config: ViTConfig, index: int) -> None:
        super().__init__()

        def scale() -> nn.Module:
            return LayerScale(config.dim) if config.layer_scale else nn.Identity()

        everywhere = not config.window or index in config.global_blocks
        before, after = config.branch_norm in ("before", "both"), config.branch_norm in ("after", "both")
        plain = config.branch_norm == "plain"
        self.norm1 = plain_norm(config.dim) if plain else norm_or_identity(before, config)
        own = attention_settings(config, index)
        whole = SinkAttention if config.sinks else SelfAttention
        self.attn = whole(own, config.grid) if everywhere else WindowAttention(config)
        begins = config.views is not None and index == config.views.start
        self.camera = nn.Parameter(torch.randn(1, 1, config.dim) * 0.02) if begins else None  # it replaces CLS
        self.post1 = norm_or_identity(after, config)
        self.ls1 = scale()
        self.sum1 = norm_or_identity(config.branch_norm == "sum", config)
        self.norm2 = plain_norm(config.dim) if plain else norm_or_identity(before, config)
        self.mlp = mlp(config)
        self.post2 = norm_or_identity(after, config)
        self.ls2 = scale()
        self.sum2 = norm_or_identity(config.branch_norm == "sum", config)
        self.drop_path = DropPath(config.drop_path * index / max(config.depth - 1, 1))
        self.waits = config.num_prefix > 0 and not everywhere  # prefix tokens take no part

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
        held: list[Tensor] = []
        if self.camera is not None:
            x = self._with_camera(x, layout)
        if self.waits:
            if prefix:
                return layout.prefix(x)
            held, x = self._hold(x, layout)
        lengths = layout.lengths(x.shape[1], prefix) if self.training else ()
        stream = layout.prefix(x) if prefix else x
        # The output of attention has no name, so that its memory is free during the MLP.
        x = stream + self.drop_path(self.ls1(self.post1(self.attn(self.norm1(x), layout, mask, prefix))), lengths)
        x = self.sum1(x)
        x = self.sum2(x + self.drop_path(self.ls2(self.post2(self.mlp(self.norm2(x)))), lengths))
        return self._rejoin(held, x, layout) if held else x

    def _with_camera(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T D"]:
        """Put the token of the camera in the place of each image's CLS token."""
        assert self.camera is not None
        parts = [part for _, part in layout.split(x)]
        camera = self.camera.type_as(x)
        return layout.join([torch.cat([camera.expand(len(part), -1, -1), part[:, 1:]], dim=1) for part in parts])

    def _hold(self, x: Float[Tensor, "B T D"], layout: Layout) -> tuple[list[Tensor], Float[Tensor, "B N D"]]:
        """Return the prefix tokens of each batch of equal grids, and the row without them."""
        count, parts = layout.num_prefix(x.shape[1]), [part for _, part in layout.split(x)]
        return [part[:, :count] for part in parts], layout.join([part[:, count:] for part in parts])

    def _rejoin(self, held: list[Tensor], x: Float[Tensor, "B N D"], layout: Layout) -> Float[Tensor, "B T D"]:
        """Undo `_hold`."""
        parts = zip(held, layout.split(x), strict=True)
        return layout.join([torch.cat([ahead, part], dim=1) for ahead, (_, part) in parts])
