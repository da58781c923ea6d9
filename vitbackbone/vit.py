"""The Vision Transformer (Dosovitskiy et al. 2021, "An image is worth 16x16 words"), any size of image.

    images (B, 3, H, W) -> patches (B, h*w, D) -> + positions -> CLS and registers in front -> blocks -> Features

Images of different sizes share one row of tokens (1, T, D), see `packing.py`.

Axes: `B` batch, `N` tokens, `T` tokens of a row, `D` width, `h w` patch grid, `H W` pixels.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from itertools import groupby
from typing import cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.config import ViTConfig
from vitbackbone.dtypes import float32_default
from vitbackbone.features import (
    Attention,
    BackboneModule,
    BackboneSpec,
    Features,
    Geometry,
    Images,
    Prefix,
    Wanted,
    check_images,
    pool_cls,
    pool_mean,
    stack,
)
from vitbackbone.layers import Block, ConvStem, PatchEmbed, PositionEmbedding
from vitbackbone.packing import Grid, Layout, one_grid, packing_order
from vitbackbone.pooling import AttentionPool, Neck, pool_neck, pool_prefix
from vitbackbone.preprocess import Preprocess


class ViT(BackboneModule):
    """A Vision Transformer that returns features. Parameter names are timm's.

    Call it on images for the `Features` of the last layer; `forward_layers` and `attention` look inside. The steps
    are public: `embed`, `blocks`, which are called with `Layout.of(geometry.grids)`, and `unpack`.
    """

    preprocess: Preprocess
    compute: Callable[..., dict[Wanted, Tensor]]  # `tokens`, or what replays it (`graphs.py`)

    @float32_default()
    def __init__(self, config: ViTConfig, preprocess: Preprocess | None = None, name: str = "vit") -> None:
        super().__init__()
        self.config = config
        self.name = name
        self.has_norm = config.final_norm
        self.preprocess = preprocess or Preprocess(image_size=config.image_size)
        self.patch_embed = ConvStem(config) if config.stem else PatchEmbed(config)
        self.pos_embed = PositionEmbedding(config) if config.position != "none" else None
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.dim) * 0.02) if config.cls else None
        registers = torch.randn(1, config.num_registers, config.dim) * 0.02
        self.reg_token = nn.Parameter(registers) if config.num_registers else None
        self.norm_pre = nn.LayerNorm(config.dim, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps) if config.final_norm else None
        self.attn_pool = AttentionPool(config) if config.pool == "map" else None
        self.neck = Neck(config) if config.neck_dim else None
        self.fc_norm = nn.LayerNorm(config.dim, eps=config.norm_eps) if config.fc_norm else nn.Identity()
        bias, width = config.projection_bias, config.projection_dim
        self.projection = nn.Linear(config.dim, width, bias=bias) if width else nn.Identity()
        self.compute = ViT.tokens
        self.apply(_init)

    @property
    def spec(self) -> BackboneSpec:
        c = self.config
        return BackboneSpec(
            name=self.name,
            dim=c.dim,
            depth=c.depth,
            num_heads=c.num_heads,
            stride=c.patch_size,
            num_registers=c.num_registers,
            has_cls=c.cls,
            has_norm=c.final_norm,
            image_size=c.image_size,
            settings=repr(c),
            pooled_dim=c.projection_dim or (c.neck_dim if c.pool == "neck" else c.dim),
        )

    def _run(self, images: Images, wanted: Set[Wanted]) -> Mapping[Wanted, Features]:
        tokens = self.compute(self, images, wanted)
        geometry = self._geometry(images)
        return {each: self.unpack(x, geometry) for each, x in tokens.items()}

    def _run_mixed(self, images: Sequence[Tensor], wanted: Set[Wanted]) -> Mapping[Wanted, Features]:
        return self._run(images, wanted)

    def _run_prefix(self, images: Images, wanted: Set[Wanted]) -> Mapping[Wanted, Prefix]:
        if self.config.pool not in ("cls", "prefix"):  # the pooled vector is made of patches
            return super()._run_prefix(images, wanted)
        tokens = self.compute(self, images, wanted, prefix=True)
        geometry = self._geometry(images)
        return {each: self._unpack_prefix(x, geometry) for each, x in tokens.items()}

    def tokens(self, images: Images, wanted: Set[Wanted], prefix: bool = False) -> dict[Wanted, Float[Tensor, "B _ D"]]:
        """The tokens of each layer wanted, with the final norm where that is: of each image all, or with `prefix` those
        in front of the patches, for which the deepest block does no more than they need."""
        x, geometry = self.embed(images)
        layout = Layout.of(geometry.grids)
        outputs: dict[Wanted, Tensor] = {}
        blocks = self._first(max(layer for layer, _ in wanted) + 1)
        for i, block in enumerate(blocks):
            ahead = prefix and i == len(blocks) - 1
            x = block.prefix(x, layout) if ahead else block(x, layout)
            if (i, False) in wanted or (i, True) in wanted:
                taken = layout.prefix(x) if prefix and not ahead else x
                if (i, False) in wanted:
                    outputs[i, False] = taken
                if (i, True) in wanted and self.norm is not None:
                    outputs[i, True] = self.norm(taken)
        return outputs

    def attention(self, images: Images, layers: Sequence[int]) -> tuple[Attention, ...]:
        """The attention maps of each layer in `layers`, recomputed from q and k; the forward keeps its fused kernel.

        A map takes B * num_heads * N² numbers, so ask for the layers you look at. Images of one size only.
        """
        check_images(images)
        indices = self.spec.indices(layers)
        if not isinstance(images, Tensor):
            raise ValueError("attention maps of images of different sizes do not stack; call once per image")
        x, geometry = self.embed(images)
        maps: dict[int, Attention] = {}
        for i, block in enumerate(self._first(max(indices) + 1)):
            if i in indices:
                weights = block.attn.weights(block.norm1(x), geometry.grid)
                maps[i] = Attention(weights, self.config.num_prefix, geometry.grid)
            if i < max(indices):
                x = block(x, Layout((geometry.grid,)))
        return tuple(maps[i] for i in indices)

    def embed(self, images: Images) -> tuple[Float[Tensor, "B T D"], Geometry]:
        """Images to the tokens that enter the first block, of each CLS, registers, patches in raster order. Images of
        one grid have a row each; those of several share one, as `Layout.of(geometry.grids)` says."""
        geometry = self._geometry(images)
        rows = [self._embed(batch, grid) for grid, batch in self._batches(images, geometry)]
        return rows[0] if len(rows) == 1 else torch.cat([row.flatten(0, 1) for row in rows])[None], geometry

    def _batches(self, images: Images, geometry: Geometry) -> list[tuple[Grid, Float[Tensor, "B 3 H W"]]]:
        """The images of each grid, padded, in the order of packing."""
        if isinstance(images, Tensor):
            return [(geometry.grid, self._pad(images))]
        grids = geometry.grids
        return [
            (grid, torch.cat([self._pad(images[i][None]) for i in same]))
            for grid, same in groupby(packing_order(grids), key=grids.__getitem__)
        ]

    def _geometry(self, images: Images) -> Geometry:
        if isinstance(images, Tensor):
            height, width = images.shape[-2:]
            return Geometry(((height, width),) * len(images), self.config.patch_size)
        return Geometry(tuple((image.shape[1], image.shape[2]) for image in images), self.config.patch_size)

    def _pad(self, images: Float[Tensor, "B 3 _ _"]) -> Float[Tensor, "B 3 H W"]:
        """To whole patches, at the bottom and right."""
        height, width = images.shape[-2:]
        bottom, right = (-side % self.config.patch_size for side in (height, width))
        if not (bottom or right):
            return images
        if self.config.indivisible == "refuse":
            raise ValueError(
                f"images are {height} x {width}, which the patch size {self.config.patch_size} does not divide; "
                f"resize them to {height + bottom} x {width + right}, or load the backbone with indivisible='pad'"
            )
        return F.pad(images, (0, right, 0, bottom))  # zero is the mean colour

    def _embed(self, images: Float[Tensor, "B 3 H W"], grid: Grid) -> Float[Tensor, "B N D"]:
        images = images.to(self.patch_embed.proj.weight.dtype)
        x = rearrange(self.patch_embed(images), "B D h w -> B (h w) D")
        if self.pos_embed is not None:
            x = x + self.pos_embed(grid)
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        return self.norm_pre(torch.cat([*prefix, x], dim=1))

    def unpack(self, x: Float[Tensor, "B T D"], geometry: Geometry) -> Features:
        """Tokens of a block to `Features`."""
        grids = geometry.grids
        if not one_grid(grids):
            lengths = Layout.of(grids).lengths(x.shape[1])
            each = dict(zip(packing_order(grids), x.split(lengths, dim=1), strict=True))
            return stack([self.unpack(each[i], geometry.image(i)) for i in range(len(grids))])
        cls = x[:, 0] if self.config.cls else None
        registers = x[:, int(self.config.cls) : self.config.num_prefix]
        patches = rearrange(x[:, self.config.num_prefix :], "B (h w) D -> B D h w", h=geometry.grid[0])
        return Features(
            cls, registers, patches, geometry, partial(_pool, self._pooling(), self.fc_norm, self.projection)
        )

    def _unpack_prefix(self, x: Float[Tensor, "B P D"], geometry: Geometry) -> Prefix:
        """The tokens in front of the patches, of each image in the order given."""
        grids = geometry.grids
        if not one_grid(grids):
            x = rearrange(x, "1 (B P) D -> B P D", B=len(grids))
            x = x[torch.tensor(packing_order(grids), device=x.device).argsort()]
        cls = x[:, 0]
        pooled = cls if self.config.pool == "cls" else x.mean(dim=1)
        return Prefix(cls, x[:, 1:], self.projection(self.fc_norm(pooled)))

    def _pooling(self) -> Callable[[Features], Tensor]:
        if self.attn_pool is not None:
            return self.attn_pool
        if self.neck is not None and self.config.pool == "neck":
            return partial(pool_neck, self.neck)
        return {"cls": pool_cls, "prefix": pool_prefix, "mean": pool_mean}[self.config.pool]

    def _first(self, count: int) -> list[Block]:
        return [cast(Block, block) for block in self.blocks[:count]]


def _pool(
    pool: Callable[[Features], Tensor], norm: nn.Module, projection: nn.Module, features: Features
) -> Float[Tensor, "B P"]:
    return projection(norm(pool(features)))


def _init(module: nn.Module) -> None:
    """Truncated normals of 0.02 for the linears, zero biases: timm's and DeiT's initialisation."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
