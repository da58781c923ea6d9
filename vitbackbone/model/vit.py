"""The Vision Transformer (Dosovitskiy et al. 2021, "An image is worth 16x16 words"), any size of image.

    images (B, C, H, W) -> patches (B, h*w, D) -> + positions -> CLS and registers in front -> blocks -> Features

Images of different sizes share one row of tokens (1, T, D); see `packing.py`. A network of clips (B, T, C, H, W) has
the patches of all steps of time in one row, step by step.

Axes: `B` batch, `N` tokens, `T` tokens of a row, `D` width, `h w` patch grid, `C` channels and `H W` pixels.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.contract import (
    Asked,
    Attention,
    BackboneModule,
    BackboneSpec,
    Features,
    Geometry,
    Images,
    Kept,
    Prefix,
    Wanted,
    any_size,
    assume,
    check_images,
    copied,
    describe_settings,
    float32_default,
    numbers,
    one_value,
    stack,
)
from vitbackbone.images import Preprocess
from vitbackbone.model.config import ViTConfig
from vitbackbone.model.layers import Block
from vitbackbone.model.masks import Keep, Mask, check_keep, check_mask, run_kept
from vitbackbone.model.norms import make_norm, norm_or_identity
from vitbackbone.model.packing import Grid, Layout, packing_order
from vitbackbone.model.patches import patch_embedding
from vitbackbone.model.pooling import VECTORS, AttentionPool, Neck, NeckMean, Pooling, PrefixVector, from_prefix
from vitbackbone.model.positions.embedding import position_embedding

Tokens = dict[Wanted, Float[Tensor, "B T D"]]  # of each requested layer
TokenEngine = Callable[["ViT", Images, Geometry, Asked], Tokens]  # a faster `ViT.tokens`


class ViT(BackboneModule):
    """A Vision Transformer that returns features. Parameter names are timm's.

    A call on images returns the `Features` of the last layer; `forward_layers` and `attention` return inner layers. The
    steps are public: `embed`, then each of `blocks` with `Layout.of(geometry.grids)`, then `unpack`.

    `engine`: computes the tokens in place of `tokens`.
    """

    preprocess: Preprocess

    @float32_default()
    def __init__(
        self,
        config: ViTConfig,
        preprocess: Preprocess | None = None,
        name: str = "vit",
        engine: TokenEngine | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.spec = _spec(config, name)
        self.channels = (config.channels,)
        self.engine = engine
        self.preprocess = preprocess or Preprocess(image_size=config.image_size)
        self.patch_embed = patch_embedding(config)
        self.embed_norm = norm_or_identity(config.embed_norm, config)
        self.pos_embed = position_embedding(config)
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.dim) * 0.02) if config.cls else None
        registers = torch.randn(1, config.num_registers, config.dim) * 0.02
        self.reg_token = nn.Parameter(registers) if config.num_registers else None
        # Nothing depends on it without a mask, and distributed training refuses parameters without a gradient
        masked = nn.Parameter(torch.zeros(1, 1, config.dim), requires_grad=False)
        self.mask_token = masked if config.mask_token else None
        self.norm_pre = norm_or_identity(config.pre_norm, config)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))
        last = replace(config, norm_eps=config.views.norm_eps) if config.views else config
        self.norm = make_norm(last) if config.final_norm else None
        self.tap_norms = nn.ModuleDict({str(index): make_norm(config) for index in config.tap_norms})
        self.attn_pool = AttentionPool(config) if config.pool in ("map", "query") else None
        self.neck = Neck(config) if config.neck_dim else None
        self.fc_norm = norm_or_identity(config.fc_norm, config)
        bias, width = config.projection_bias, config.projection_dim
        self.projection = nn.Linear(config.vector_dim, width, bias=bias) if width else nn.Identity()
        self.apply(_init)

    def forward(
        self, images: Images, asked: Asked | None = None, mask: Mask | None = None, keep: Keep | None = None
    ) -> Any:
        """See `BackboneModule`.

        `mask`: True where a patch is replaced by the mask token, (B, h, w). Positions are added after it, as in
        transformers' `bool_masked_pos`. Raises `ValueError` if the weights have no mask token, or if the mask does not
        have one value for each patch. A list of images and an optimised backbone take no mask.
        `keep`: see `forward_kept`, which calls the module with it.
        """
        asked = asked or self.last
        check_images(images, self.channels, self.spec.tubelet > 0)
        geometry = self._geometry(images)
        if mask is not None:
            self._check_mask(images, geometry, mask)
        if keep is not None:
            self._check_plain(images, "keep")
        with any_size():
            if keep is not None:
                return run_kept(self, cast(Tensor, images), geometry, keep)
            if asked.part == "attention":
                return asked.answer(self._maps(images, geometry, asked, mask))
            # Other poolings read the patches, so the deepest block must run for all tokens.
            prefix = asked.part == "prefix" and from_prefix(self.config) is not None
            run = partial(self.tokens, mask=mask) if self.engine is None else partial(self.engine, self)
            tokens = run(images, geometry, asked if prefix else replace(asked, part="features"))
            unpack = self._unpack_prefix if prefix else self.unpack
            return asked.answer({each: unpack(x, geometry) for each, x in tokens.items()})

    def _check_mask(self, images: Images, geometry: Geometry, mask: Mask) -> None:
        if self.mask_token is None:
            raise ValueError(f"{self.spec.name} has no mask token; load weights that have one, such as DINOv2's")
        self._check_plain(images, "mask")
        check_mask(mask, cast(Tensor, images).shape[0], geometry.grid)

    def _check_plain(self, images: Images, option: str) -> None:
        """Raise `ValueError` unless this backbone runs as it was loaded, on a batch of images of one size."""
        if self.engine is not None or type(self).tokens is not ViT.tokens:
            raise ValueError(f"an optimised backbone takes no {option}=; use the backbone as it was loaded")
        if self.config.channel_groups:
            raise ValueError(f"{self.spec.name} has patches for each group of channels; it takes no {option}=")
        if not isinstance(images, Tensor) or images.ndim == 5:
            given = "clips take" if isinstance(images, Tensor) else "a list of images takes"
            raise ValueError(f"{given} no {option}=; call once per image size, with a batch of images")

    def forward_kept(self, images: Float[Tensor, "B C H W"], keep: Keep) -> Kept:
        """Return the features of some patches of each image, computed as if there were no others.

        `keep`: row-major indices of the patches to keep, (B, K), distinct for each image. Every kept patch has its own
        position. Dropped patches cost nothing, unless positions act inside attention (rotary, relative).
        Raises `ValueError` on indices that are not patches, on a list of images, if attention stays within windows, and
        if the backbone is optimised.
        """
        check_images(images, self.channels, self.spec.tubelet > 0)
        self._check_plain(images, "keep")
        grid = Geometry.of(images, self.config.patch_size).grid
        check_keep(keep, images.shape[0], grid[0] * grid[1])
        if self.config.window:
            raise ValueError(f"attention of {self.spec.name} stays within windows, so that no patch can be dropped")
        return self(images, keep=keep)

    def tokens(self, images: Images, geometry: Geometry, asked: Asked, mask: Mask | None = None) -> Tokens:
        """Return the tokens of each requested layer.

        If the requested part is "prefix", they are the prefix tokens alone, and the deepest block runs for them alone.
        """
        x, _ = self.embed(images, geometry, mask)
        layout = Layout.of(geometry.grids, geometry.steps)
        outputs: Tokens = {}
        for i, block in enumerate(self._first(asked.deepest + 1)):
            last = asked.part == "prefix" and i == asked.deepest
            x = block(x, layout, prefix=last)
            for norm in (False, True):
                if (i, norm) in asked.wanted:
                    taken = layout.prefix(x) if asked.part == "prefix" and not last else x
                    outputs[i, norm] = self.norm_of(i)(taken) if norm else taken
        return outputs

    def norm_of(self, layer: int) -> nn.Module:
        """Return the norm of a layer's output: the final norm, or the layer's own."""
        if str(layer) in self.tap_norms:
            return self.tap_norms[str(layer)]
        assert self.norm is not None  # `BackboneSpec.wanted` refuses norms that a network lacks
        return self.norm

    def _geometry(self, images: Images) -> Geometry:
        geometry = Geometry.of(images, self.config.patch_size, max(self.config.tubelet, 1))
        groups = self.config.channel_groups
        return replace(geometry, steps=groups) if groups else geometry

    def windowed(self, window: int, num_global: int = 4) -> "ViT":
        """Return the same network, its parameters shared, with attention in windows in all blocks but a few.

        The last block of each of `num_global` groups, and of all, attends over the whole image. CLS and registers wait
        outside the windows. C-RADIO is trained for both ways (NVlabs/RADIO, radio/vitdet.py). Upstream takes only
        images of whole windows; here the last windows are padded.

        `window`: side of the windows in patches.
        Raises `ValueError` if the network has windows or relative positions already, or if no block would have windows.
        """
        config, period = self.config, max(self.config.depth // max(num_global, 1), 1)
        if config.window or config.relative_position != "none":
            raise ValueError(f"{self.spec.name} has windows or relative positions of its own; want a ViT without")
        if period < 2:
            raise ValueError(f"num_global={num_global} of {config.depth} blocks; want at most half of them")
        last = config.depth - 1
        everywhere = tuple(i for i in range(config.depth) if i % period == period - 1 or i == last)
        changed = replace(config, window=window, global_blocks=everywhere)
        with torch.device("meta"):
            network = ViT(changed, self.preprocess, self.spec.name)
        network.load_state_dict(self.state_dict(keep_vars=True), assign=True)
        network.train(self.training)
        return network

    def _maps(self, images: Images, geometry: Geometry, asked: Asked, mask: Mask | None) -> dict[Wanted, Attention]:
        """Return the attention maps of each requested layer, with B * num_heads * N² numbers each."""
        if not isinstance(images, Tensor):
            raise ValueError("attention maps of a list of images do not stack; call once per image")
        x, _ = self.embed(images, geometry, mask)
        maps: dict[Wanted, Attention] = {}
        for i, block in enumerate(self._first(asked.deepest + 1)):
            if (i, False) in asked.wanted:
                weights = block.attn.weights(block.norm1(x), geometry.grid, geometry.steps)
                maps[i, False] = Attention(weights, self.config.num_prefix, geometry.grid, geometry.steps)
            if i < asked.deepest:
                x = block(x, Layout.of(geometry.grids, geometry.steps))
        return maps

    def embed(
        self, images: Images, geometry: Geometry | None = None, mask: Mask | None = None
    ) -> tuple[Float[Tensor, "B T D"], Geometry]:
        """Return the tokens that enter the first block, and the geometry of the images.

        The tokens of an image are CLS, registers, and patches in raster order. Images with equal grids have one row
        each, and images with different grids share one row, in the order of `Layout.of(geometry.grids)`.
        """
        geometry = geometry or self._geometry(images)
        rows = [self._embed(batch, grid, mask) for grid, batch in self.batches(images, geometry)]
        return rows[0] if len(rows) == 1 else torch.cat([row.flatten(0, 1) for row in rows])[None], geometry

    def batches(self, images: Images, geometry: Geometry) -> list[tuple[Grid, Float[Tensor, "B *T C H W"]]]:
        """Return each grid with its images, padded to whole patches, in the order of packing."""
        if isinstance(images, Tensor):
            return [(geometry.grid, self._pad(images, geometry.grid))]
        grids = geometry.grids
        return [
            (grid, torch.cat([self._pad(images[i][None], grid) for i in same]))
            for grid, same in groupby(packing_order(grids), key=grids.__getitem__)
        ]

    def _pad(self, images: Float[Tensor, "B *T C _ _"], grid: Grid) -> Float[Tensor, "B *T C H W"]:
        """Pad the images at the bottom and right to whole patches, with the mean colour, which is 0 here."""
        height, width = images.shape[-2:]
        tall, wide = (side * self.config.patch_size for side in grid)
        if numbers(height, width) and (tall, wide) == (height, width):
            return images
        if self.config.indivisible == "refuse":
            if numbers(height, width):
                raise ValueError(
                    f"images are {height} x {width}, which the patch size {self.config.patch_size} does not divide; "
                    f"resize them to {tall} x {wide}, or load the backbone with indivisible='pad'"
                )
            assume(tall == height)
            assume(wide == width)
        return F.pad(images, (0, wide - width, 0, tall - height))

    def _embed(
        self, images: Float[Tensor, "B *T C H W"], grid: Grid, mask: Mask | None = None
    ) -> Float[Tensor, "B N D"]:
        images = images.to(self.patch_embed.proj.weight.dtype)
        maps = self.patch_embed(images)
        steps = maps.shape[2] if maps.ndim == 5 else 1
        x = self.embed_norm(maps.flatten(2).mT)  # B (h w) D
        if mask is not None and self.mask_token is not None:
            x = torch.where(mask.flatten(1)[..., None], self.mask_token, x)
        if self.pos_embed is not None:
            x = x + self.pos_embed(grid, x, steps)
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        return self.norm_pre(torch.cat([*prefix, x], dim=1))

    def unpack(self, x: Float[Tensor, "B T D"], geometry: Geometry) -> Features:
        """Turn the tokens of a block into `Features`."""
        grids = geometry.grids
        if not one_value(grids):
            lengths = Layout.of(grids, geometry.steps).lengths(x.shape[1])
            each = dict(zip(packing_order(grids), x.split(lengths, dim=1), strict=True))
            return stack([self.unpack(each[i], geometry.image(i)) for i in range(len(grids))])
        cls = x[:, 0] if self.config.cls else None
        registers = x[:, int(self.config.cls) : self.config.num_prefix]
        patches = x[:, self.config.num_prefix :].mT.unflatten(2, geometry.shape)  # B D h w, or B D t h w
        if torch.compiler.is_exporting():  # a convolution on a view would specialise sides of size 1
            patches = copied(patches)
        return Features(cls, registers, patches, geometry, Pooling(self._vector(), self.fc_norm, self.projection))

    def _unpack_prefix(self, x: Float[Tensor, "B P D"], geometry: Geometry) -> Prefix:
        """Turn the prefix tokens of a block into a `Prefix`, with the images in the order given."""
        grids = geometry.grids
        if not one_value(grids):
            x = rearrange(x, "1 (B P) D -> B P D", B=len(grids))
            x = x[torch.tensor(packing_order(grids), device=x.device).argsort()]
        pool, count = from_prefix(self.config), int(self.config.cls)
        assert pool is not None
        return Prefix(x[:, 0] if count else None, x[:, count:], self.projection(self.fc_norm(pool(x))))

    def _vector(self) -> Callable[[Features], Tensor]:
        """Return the function that pools the features, before the norm and the projection of the pooled vector."""
        if self.attn_pool is not None:
            return self.attn_pool
        if self.neck is not None and self.config.pool == "neck":
            return NeckMean(self.neck)
        prefix = from_prefix(self.config)
        return VECTORS[self.config.pool] if prefix is None else PrefixVector(prefix)

    def _first(self, count: int) -> list[Block]:
        return [cast(Block, block) for block in self.blocks[:count]]


def _spec(c: ViTConfig, name: str) -> BackboneSpec:
    return BackboneSpec(
        name=name,
        dim=c.dim,
        depth=c.depth,
        num_heads=c.num_heads,
        stride=c.patch_size,
        num_registers=c.num_registers,
        has_cls=c.cls,
        has_norm=c.final_norm,
        image_size=c.image_size,
        in_chans=c.channels,
        settings=describe_settings(c),
        pooled_dim=c.projection_dim or c.vector_dim,
        tubelet=c.tubelet,
    )


def _init(module: nn.Module) -> None:
    """Initialise linear layers as timm and DeiT do: weights from a truncated normal with std 0.02, and zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
