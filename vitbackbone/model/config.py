"""The configuration of a Vision Transformer: one frozen record that validates itself, and the table of sizes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Position = Literal["learned", "sincos1d", "sincos2d", "computed2d", "clips", "ground", "axes", "none"]
RelativePosition = Literal["none", "table", "decomposed"]
QkvBias = Literal["qkv", "qv", "none"]
MlpKind = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "swiglu", "geglu", "geglu_tanh"]
GATED: tuple[MlpKind, ...] = ("swiglu", "geglu", "geglu_tanh")
NormKind = Literal["layer", "rms"]
BranchNorm = Literal["before", "plain", "after", "both", "sum"]
QkNorm = Literal["none", "head", "plain", "full"]
WindowEdge = Literal["pad", "cut"]
Pool = Literal["cls", "prefix", "tokens", "mean", "cls_mean", "map", "query", "neck"]
Indivisible = Literal["pad", "refuse"]
Mode = Literal["bicubic", "bilinear"]
RelativeMode = Literal["spline", "geometric", "bilinear"]
Fit = Literal["resize", "square", "tile", "buckets"]
AsSquare = Literal["never", "elsewhere", "always"]
Coordinates = Literal["centred", "index", "corners", "same", "golden"]
Pairs = Literal["halves", "neighbours"]


def check_kinds(record: object, kinds: Mapping[str, object]) -> None:
    """Raise `ValueError` if a field has a value that its `Literal` does not allow."""
    for name, kind in kinds.items():
        if getattr(record, name) not in get_args(kind):
            wanted = ", ".join(map(str, get_args(kind)))
            raise ValueError(f"{type(record).__name__}: {name}={getattr(record, name)!r}; want one of {wanted}")


@dataclass(frozen=True)
class Resampling:
    """The policy that resizes a position table to another patch grid.

    The policy is part of the checkpoint, because upstream implementations differ by up to a few percent.

    `offset`: 0 passes the size n to `interpolate`. DINO and DINOv2 pass the scale factor (n + offset) / M instead,
    which shifts every sample point a little (facebookresearch/dinov2, models/vision_transformer.py).
    `relative`: the policy for tables of relative positions; see `resample_relative`.
    `as_square`: when a table of h * w patches is read as a square grid of as many patches before it is resized: never,
    at every size but the table's own, or always. transformers does so for tables of any shape.
    `align_corners`: whether the corners of the two grids lie on each other, as in `F.interpolate` (C-RADIOv3).
    `fit`: how a table covers another grid. `"resize"` stretches each side to the grid. `"square"` resizes to a square
    with the longer side of the grid, and crops it at the right or the bottom (NVlabs/RADIO, `cpe_support.py`).
    `"tile"` repeats the table and crops it (SAM 3). `"buckets"` makes no new values: the fraction i / h of a row picks
    one of the table's rows (Idefics 2; Dehghani et al. 2023, "Patch n' pack").

    Raises `ValueError` on an unknown value, and on settings that do not go together.
    """

    mode: Mode = "bicubic"
    antialias: bool = False
    offset: float = 0.0
    relative: RelativeMode = "spline"
    as_square: AsSquare = "never"
    align_corners: bool = False
    fit: Fit = "resize"

    def __post_init__(self) -> None:
        check_kinds(self, {"mode": Mode, "relative": RelativeMode, "as_square": AsSquare, "fit": Fit})
        if self.align_corners and (self.antialias or self.offset):
            raise ValueError("Resampling: align_corners=True goes with antialias=False and offset=0")
        if self.offset and self.fit != "resize":
            raise ValueError(f"Resampling: offset={self.offset} goes with fit='resize', got {self.fit!r}")
        if self.antialias and self.offset:
            raise ValueError(
                f"Resampling: offset={self.offset} goes with antialias=False: upstream antialiases without it"
            )
        if self.align_corners and (self.antialias or self.offset):
            raise ValueError("Resampling: align_corners=True goes with antialias=False and offset=0")


@dataclass(frozen=True)
class Rotary:
    """Rotary positions of the patches (Su et al. 2021).

    Half of each head's channels encode the row, and half the column.

    `coordinates`: `"centred"` is 2π times a patch's centre, which is in [-1, 1] on every grid (DINOv3). `"index"` is a
    patch's row or column plus `offset`, rescaled so that every grid spans `reference` (EVA-02), or as it is if
    `reference` is None (Qwen2-VL). `"corners"` puts the corners of every grid on the corners of `reference` (V-JEPA
    2.1). `"same"` puts all patches at `offset` (Depth Anything 3). `"golden"` turns each pair of channels by a patch's
    place along a direction of its own, of `heads` heads. Frequencies run from 1 to `theta`, rows from -√(h/w) to
    √(h/w), and columns from -√(w/h) to √(w/h). The second half of a head's channels is still (SigLino). Tokens in front
    of the patches are not turned, so that `offset` sets their distance to the patches.
    `interleaved`: whether the wavelengths of the columns lie between those of the rows (Pixtral). Otherwise both axes
    have the same.
    `cls_angles`: whether CLS is turned by learned angles, one for each pair of channels (MLCD).
    `time`: whether a third of a head's channels encode the step of time, a third the row, and a third the column, in
    this order. Channels that are left over are not turned.
    `repeated`: whether the wavelengths of an axis run twice over its channels, where channels that turn together are
    neighbours (V-JEPA 2). Such channels have different angles, so that this is not a rotation.

    Raises `ValueError` on an unknown value, and if `theta` is not above 0.
    """

    theta: float  # wavelengths run from 1 to nearly theta, in geometric progression
    coordinates: Coordinates
    pairs: Pairs  # channels that rotate together: (i, i + d/2), or (2i, 2i + 1)
    reference: tuple[int, int] | None = None  # (h, w) of the grid that "index" coordinates span
    offset: float = 0.0
    interleaved: bool = False
    cls_angles: bool = False
    time: bool = False
    repeated: bool = False
    bfloat16: bool = False  # whether wavelengths are rounded to bfloat16, as in the authors' DINOv3 files
    heads: int = 0  # coordinates="golden": heads with directions of their own

    def __post_init__(self) -> None:
        check_kinds(self, {"coordinates": Coordinates, "pairs": Pairs})
        if self.theta <= 0:
            raise ValueError(f"Rotary: theta must be above 0, got {self.theta}")
        if self.coordinates == "corners" and self.reference is None:
            raise ValueError("Rotary: coordinates='corners' needs reference, the grid with these corners")
        if (self.coordinates == "golden") != (self.heads > 0) or (self.heads and (self.time or self.cls_angles)):
            raise ValueError(f"Rotary: heads={self.heads} with coordinates={self.coordinates!r}; want both or neither")
        if self.repeated and (self.pairs != "neighbours" or self.cls_angles):
            raise ValueError("Rotary: repeated=True goes with pairs='neighbours' and without cls_angles")


@dataclass(frozen=True)
class Views:
    """The parts that blocks for several views of a scene have from one block on (Depth Anything 3).

    CLS becomes a learned token of the camera, and queries and keys have norms. Even blocks have the rotary positions of
    the configuration. In odd blocks, which attend over all views upstream, all patches have the same position. An image
    is the only view of its scene.
    """

    start: int  # 0-based index of the first such block
    norm_eps: float = 1e-5  # epsilon of the norms of queries and keys, and of the final norm


@dataclass(frozen=True)
class Experts:
    """The number of experts in each block, and how many of them a token takes (see `experts.py`)."""

    count: int
    chosen: int

    def __post_init__(self) -> None:
        if not 1 <= self.chosen <= self.count:
            raise ValueError(f"Experts: a token takes {self.chosen} of {self.count} experts; want 1 to {self.count}")


@dataclass(frozen=True)
class Tiles:
    """The tiles of an image, and what runs over all of them (see `tiled_vit.py`)."""

    arrangements: tuple[tuple[int, int], ...]  # rows and columns of tiles that an image may have
    count: int  # tiles of every image; those that it lacks are empty
    depth: int  # blocks with gates, after the blocks of the configuration
    taps: tuple[int, ...]  # blocks whose outputs are joined to the last block's
    norm_eps: float = 1e-5  # epsilon of the norms before and after the blocks of the configuration


@dataclass(frozen=True)
class ViTConfig:
    """The configuration of a `ViT`. The defaults are ViT-B/16 at 224 px (Dosovitskiy et al. 2021).

    Raises `ValueError` on unknown values, and on values that contradict each other.
    """

    image_size: tuple[int, int] = (224, 224)  # (H, W) in pixels that the position table was trained at
    patch_size: int = 16
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    head_dim: int = 0  # width of a head; 0 is dim / num_heads
    num_kv_heads: int = 0  # heads of keys and values, each shared by as many queries' heads; 0 is num_heads
    mlp_dim: int = 3072  # hidden width of the MLP; a gated one has two branches of this width
    # exact GELU, tanh approximation, x * sigmoid(1.702 x); or gated: by SiLU, exact GELU, tanh approximation
    mlp: MlpKind = "gelu"
    mlp_norm: bool = False  # whether a gated MLP normalises its hidden values
    experts: Experts | None = None  # MLPs instead of one; each token takes a few of them (SigLino)
    channels: int = 3  # of the images
    stem: tuple[tuple[int, int], ...] = ()  # (width, stride) of each 3x3 convolution; () is a linear projection
    patch_bias: bool = True  # whether the patch projection has a bias
    embed_norm: bool = False  # whether a norm follows the patch projection, before positions and CLS
    patch_padding: int = 0  # zeros around the image in the patch projection, in pixels (ViTPose)
    tubelet: int = 0  # frames in a patch of a clip; 0: only images (Arnab et al. 2021, ViViT)
    # Whether images have their own projection, next to the one for clips. Otherwise their frame is repeated (V-JEPA 2)
    image_patches: bool = False
    channel_groups: int = 0  # groups of channels, each with patches of its own as a step of the map; 0: none (SatMAE)
    # Of the channels, in micrometres. The patch projection is made for them when weights are loaded (DOFA)
    wavelengths: tuple[float, ...] = ()
    pre_norm: bool = False  # whether a norm precedes the first block
    cls: bool = True  # whether there is a CLS token
    num_registers: int = 0  # prefix tokens that are neither CLS nor patch: registers, DeiT's distillation token
    # A learned table, a table of sinusoids, sinusoids computed for each grid, sinusoids of time beside a table of those
    # of rows and columns (Prithvi), or a learned vector a row and a column
    position: Position = "learned"
    metres: float = 10.0  # side of a pixel on the ground, for sinusoids that count metres (position="ground", Clay)
    axis_positions: int = 0  # rows, and columns, that position="axes" has vectors for
    position_grid: tuple[int, int] | None = None  # (h, w) of the position table; None is the grid of image_size
    position_steps: int = 1  # steps of the map that the learned table has positions for; 1 serves any number
    resampling: Resampling = Resampling()
    rotary: Rotary | None = None
    relative_position: RelativePosition = "none"  # bias on attention: a table (BEiT), or rows plus columns (SAM)
    # side of the attention windows in patches; 0 is attention over the whole image. CLS and registers wait outside:
    # a block with windows leaves them as they are (C-RADIO)
    window: int = 0
    window_edge: WindowEdge = "pad"  # windows over the edge are padded with zeros (SAM), or smaller (Qwen2.5-VL)
    global_blocks: tuple[int, ...] = ()  # 0-based indices of the blocks without windows
    qkv_bias: QkvBias = "qkv"  # which of queries, keys and values have a bias
    proj_bias: bool = True  # whether the projection after attention has a bias
    mlp_bias: bool = True  # whether the linear layers of the MLP have biases
    clipped: bool = False  # whether the linear layers of the blocks clamp their inputs and outputs
    # Whether queries and keys have a norm, over each head, over each head without weights, or over all heads
    qk_norm: QkNorm = "none"
    sinks: bool = False  # whether each head has a sink that takes its share of the attention (SigLino)
    v_norm: bool = False  # whether the values of each head are divided by their root mean square
    attn_norm: bool = False  # whether a norm precedes the projection after attention
    norm: NormKind = "layer"  # layer norm, or root mean square without a bias
    # norms of a block: before attention and MLP, before them without weights, after them, both, or after they are added
    # to the tokens (BERT)
    branch_norm: BranchNorm = "before"
    layer_scale: bool = False  # whether residual branches have a learned factor per channel
    norm_eps: float = 1e-6
    final_norm: bool = True  # whether a norm follows the last block
    tap_norms: tuple[int, ...] = ()  # blocks whose output has a norm of its own in place of the final norm (V-JEPA 2.1)
    fc_norm: bool = False  # whether a norm after mean pooling replaces the final norm
    # The CLS token, the mean of CLS and registers (timm's distilled DeiT, Pixio), some prefix tokens side by side
    # (C-RADIO), the mean of the patches, CLS beside that mean (Virchow), attention pooling with an MLP (SigLIP) or
    # without one (AIMv2), or the mean of the neck's map (SAM).
    pool: Pool = "cls"
    pool_tokens: tuple[int, ...] = ()  # pool="tokens": 0-based indices of prefix tokens, CLS first
    pool_heads: int = 0  # heads of attention pooling; 0 is num_heads
    pool_dim: int = 0  # pool="query": width of the query; 0 is dim
    pool_norm: bool = False  # pool="query": whether a norm follows attention (CoCa)
    pool_mlp_dim: int = 0  # hidden width of the MLP of attention pooling; 0 is mlp_dim
    pool_prefix: bool = False  # whether attention pooling reads CLS and registers too
    neck_dim: int = 0  # channels of SAM's neck; 0: it has no neck
    views: Views | None = None  # an image is one view of a scene (Depth Anything 3)
    tiles: Tiles | None = None  # the parts, of `image_size` each, of a larger image (Llama 3.2 Vision)
    projection_dim: int = 0  # width of a linear projection after pooling (CLIP); 0: none
    projection_bias: bool = False
    # Whether there is a token for masked patches. It changes no plain feature, so it is not part of the settings' text
    mask_token: bool = field(default=False, repr=False)
    drop_path: float = 0.0  # rate of the last block in training; the rate rises linearly from 0 in the first
    indivisible: Indivisible = "pad"  # images that the patch size does not divide: pad right and bottom, or refuse

    def __post_init__(self) -> None:
        def wrong(text: str) -> ValueError:
            return ValueError(f"ViTConfig: {text}")

        check_kinds(self, KINDS)
        for name in ("patch_size", "channels", "dim", "depth", "num_heads", "mlp_dim"):
            if getattr(self, name) < 1:
                raise wrong(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.head_dim and self.dim % self.num_heads:
            raise wrong(f"dim={self.dim} is not divisible by num_heads={self.num_heads}, and head_dim is 0")
        if self.num_heads % self.kv_heads:
            raise wrong(f"num_heads={self.num_heads} is not divisible by num_kv_heads={self.num_kv_heads}")
        if any(side < self.patch_size or side % self.patch_size for side in self.image_size):
            raise wrong(f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}")
        if self.stem and math.prod(stride for _, stride in self.stem) != self.patch_size:
            raise wrong(f"the strides of stem={self.stem} do not multiply to patch_size={self.patch_size}")
        if not 0 <= 2 * self.patch_padding < self.patch_size or (self.patch_padding and self.stem):
            raise wrong(
                f"patch_padding={self.patch_padding} with patch_size={self.patch_size}; want less than half of it"
            )
        if self.position_grid is not None and (min(self.position_grid) < 1 or self.position == "none"):
            raise wrong(f"position_grid={self.position_grid} with position={self.position!r}; want sides of at least 1")
        parts = {"sincos1d": 2, "sincos2d": 4, "computed2d": 4, "clips": 16}.get(self.position, 1)
        if self.dim % parts:
            raise wrong(f"position={self.position!r} needs dim divisible by {parts}, got {self.dim}")
        if self.sinks and self.window:
            raise wrong("sinks=True goes with window=0")
        if self.experts and (self.mlp not in GATED or self.mlp_bias or self.mlp_norm or self.clipped):
            raise wrong("experts go with a gated mlp, mlp_bias=False, mlp_norm=False and clipped=False")
        if self.rotary and self.rotary.heads not in (0, self.num_heads):
            raise wrong(f"rotary.heads={self.rotary.heads} with num_heads={self.num_heads}; want the same")
        if self.views and (not self.cls or not self.rotary or self.window or not 0 <= self.views.start < self.depth):
            raise wrong(f"views={self.views} needs CLS, rotary positions, no windows and a start before depth")
        if self.position == "ground" and (self.dim < 16 or self.dim % 4 or self.metres <= 0):
            raise wrong(f"position='ground' needs dim divisible by 4 and metres above 0, got {self.dim}, {self.metres}")
        if (self.position == "axes") != (self.axis_positions > 0):
            raise wrong(f"axis_positions={self.axis_positions} with position={self.position!r}; want both or neither")
        if self.rotary and self.rotary.time and (self.head_width % 2 or self.head_width < 6 or not self.tubelet):
            raise wrong(f"rotary.time needs tubelet and heads of an even width above 5, got {self.head_width}")
        if self.rotary and not self.rotary.time and self.head_width % 4:
            raise wrong(f"rotary needs heads of a width divisible by 4, got {self.head_width}")
        self._check_clips(wrong)
        if self.rotary and self.rotary.cls_angles and self.num_prefix != int(self.cls):
            raise wrong("rotary.cls_angles=True turns CLS, and has no angles for registers")
        if self.relative_position == "decomposed" and self.num_prefix:
            raise wrong("relative_position='decomposed' has no place for CLS or registers")
        if self.relative_position == "table" and self.num_prefix != 1:
            raise wrong(f"relative_position='table' has biases for one prefix token, got {self.num_prefix}")
        for name in (
            *("window", "neck_dim", "projection_dim", "pool_heads", "pool_mlp_dim", "pool_dim"),
            *("head_dim", "num_kv_heads", "axis_positions"),
        ):
            if getattr(self, name) < 0:
                raise wrong(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.norm_eps <= 0:
            raise wrong(f"norm_eps must be above 0, got {self.norm_eps}")
        if any(not 0 <= i < self.depth for i in self.global_blocks) or (self.global_blocks and not self.window):
            raise wrong(
                f"global_blocks={self.global_blocks} with window={self.window} and depth={self.depth}; want a window "
                "above 0 and indices from 0 to less than depth"
            )
        if self.projection_bias and not self.projection_dim:
            raise wrong("projection_bias=True needs projection_dim")
        if self.stem and not self.patch_bias:
            raise wrong("patch_bias=False needs stem=(), because the last convolution of a stem has a bias")
        if self.mlp_norm and self.mlp not in GATED:
            raise wrong(f"mlp_norm=True needs mlp to be one of {', '.join(GATED)}, got {self.mlp!r}")
        if self.window_edge == "cut" and not self.window:
            raise wrong("window_edge='cut' needs window")
        if self.window_edge == "cut" and self.relative_position != "none":
            raise wrong("window_edge='cut' goes with relative_position='none'")
        if self.num_kv_heads and self.qkv_bias == "qv":
            raise wrong("num_kv_heads goes with qkv_bias='qkv' or 'none'")
        if self.pool in ("cls", "prefix", "cls_mean") and not self.cls:
            raise wrong(f"pool={self.pool!r} needs cls=True; use pool='mean'")
        if bool(self.pool_tokens) != (self.pool == "tokens"):
            raise wrong(f"pool_tokens={self.pool_tokens} with pool={self.pool!r}; want both, pool='tokens', or neither")
        if any(not 0 <= i < self.num_prefix for i in self.pool_tokens):
            raise wrong(f"pool_tokens={self.pool_tokens}; want indices of the {self.num_prefix} prefix tokens")
        if self.pool not in ("map", "query") and (self.pool_heads or self.pool_prefix):
            raise wrong(f"pool_heads and pool_prefix belong to pool='map' and pool='query', got {self.pool!r}")
        if self.pool != "map" and self.pool_mlp_dim:
            raise wrong(f"pool_mlp_dim={self.pool_mlp_dim} belongs to pool='map', got {self.pool!r}")
        if self.pool != "query" and (self.pool_dim or self.pool_norm):
            raise wrong(f"pool_dim and pool_norm belong to pool='query', got {self.pool!r}")
        if (self.pool_heads or self.pool_dim) and (self.pool_dim or self.dim) % (self.pool_heads or self.num_heads):
            raise wrong(
                f"attention pooling is {self.pool_dim or self.dim} wide, which is not divisible by its "
                f"{self.pool_heads or self.num_heads} heads"
            )
        if self.pool == "neck" and not self.neck_dim:
            raise wrong("pool='neck' needs neck_dim; use pool='mean'")
        if self.fc_norm and (self.final_norm or self.pool != "mean"):
            raise wrong("fc_norm=True replaces the final norm after mean pooling: set final_norm=False, pool='mean'")
        if self.num_registers < 0:
            raise wrong(f"num_registers must be 0 or more, got {self.num_registers}")
        if not 0 <= self.drop_path < 1:
            raise wrong(f"drop_path must be in [0, 1), got {self.drop_path}")

    def _check_clips(self, wrong: Callable[[str], ValueError]) -> None:
        """Raise `ValueError` on settings that clips do not go with."""
        others = {
            "stem": self.stem,
            "window": self.window,
            "relative_position": self.relative_position != "none",
            "patch_padding": self.patch_padding,
            "rotary.cls_angles": self.rotary is not None and self.rotary.cls_angles,
        }
        found = [name for name, there in others.items() if there]
        if self.tubelet < 0 or (self.tubelet and found):
            raise wrong(f"tubelet={self.tubelet} with {', '.join(found) or 'nothing else'}; want 0, or none of these")
        if self.channel_groups and (self.channel_groups < 0 or self.tubelet or found):
            raise wrong(f"channel_groups={self.channel_groups} with {', '.join(found) or 'tubelet'}; want 0")
        if self.wavelengths and len(self.wavelengths) != self.channels:
            raise wrong(f"wavelengths={self.wavelengths} for channels={self.channels}; want one for each")
        if self.position_steps < 1 or (self.position_steps > 1 and self.position != "learned"):
            raise wrong(f"position_steps={self.position_steps} with position={self.position!r}; want 1, or 'learned'")
        if self.image_patches and not self.tubelet:
            raise wrong("image_patches=True needs tubelet, the frames of the patches of clips")
        if self.tap_norms and (not self.final_norm or any(not 0 <= i < self.depth - 1 for i in self.tap_norms)):
            raise wrong(
                f"tap_norms={self.tap_norms} with depth={self.depth}; want blocks before the last, and final_norm"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the patches at `image_size`."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def head_width(self) -> int:
        """Channels of a head."""
        return self.head_dim or self.dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and of values."""
        return self.num_kv_heads or self.num_heads

    @property
    def table_grid(self) -> tuple[int, int]:
        """(h, w) of the position table."""
        return self.position_grid or self.grid

    @property
    def num_prefix(self) -> int:
        """Number of tokens in front of the patches: CLS and registers."""
        return int(self.cls) + self.num_registers

    @property
    def vector_dim(self) -> int:
        """Width of the pooled vector before its projection."""
        widths = {"tokens": len(self.pool_tokens) * self.dim, "cls_mean": 2 * self.dim, "neck": self.neck_dim}
        return widths.get(self.pool, self.pool_dim or self.dim)


KINDS = {
    "position": Position,
    "relative_position": RelativePosition,
    "qkv_bias": QkvBias,
    "mlp": MlpKind,
    "norm": NormKind,
    "branch_norm": BranchNorm,
    "qk_norm": QkNorm,
    "window_edge": WindowEdge,
    "pool": Pool,
    "indivisible": Indivisible,
}

#                 dim  depth heads mlp_dim
SIZES: dict[str, tuple[int, int, int, int]] = {
    "Ti": (192, 12, 3, 768),  # Touvron et al. 2021
    "S": (384, 12, 6, 1536),  # Touvron et al. 2021
    "B": (768, 12, 12, 3072),  # Dosovitskiy et al. 2021, table 1
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
    "M": (512, 12, 8, 2048),  # Touvron et al. 2022
    "So": (1152, 27, 16, 4304),  # "shape-optimised", Alabdulmohsin et al. 2023
    "g": (1408, 40, 16, 6144),  # Zhai et al. 2022
    "G": (1664, 48, 16, 8192),
    "gopt": (1536, 40, 16, 6144),  # Tschannen et al. 2025
}


def vit_config(variant: str, resolution: int = 224, **fields: Any) -> ViTConfig:
    """Return the published configuration of a variant such as `"B/16"` or `"H/14"`.

    `resolution`: side of the square training image in pixels.
    `fields`: fields of `ViTConfig` to replace.
    Raises `ValueError` if the variant is unknown, or as `ViTConfig` does.
    """
    size, _, patch = variant.partition("/")
    if size not in SIZES or not patch.isdecimal():
        raise ValueError(f"unknown variant {variant!r}; want SIZE/PATCH such as 'B/16', SIZE one of {', '.join(SIZES)}")
    dim, depth, num_heads, mlp_dim = SIZES[size]
    base = ViTConfig((resolution, resolution), int(patch), dim, depth, num_heads, mlp_dim=mlp_dim)
    return replace(base, **fields)
