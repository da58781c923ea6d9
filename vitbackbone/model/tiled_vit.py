"""A Vision Transformer over the tiles of an image (Llama 3.2 Vision, "mllama"; Grattafiori et al. 2024, section 7).

    image -> square tiles -> patches, CLS and filling of each tile -> blocks -> norm -> blocks with gates -> map

Every image has the same number of tiles. An image with fewer tiles gets empty ones. As upstream, its tokens attend to
these too. Only empty tokens do not see each other.

Axes: `B` batch, `S` tiles, `n` tokens of a tile, `D` width, `h w` patch grid.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.contract import (
    Asked,
    Attention,
    Features,
    Geometry,
    Images,
    Wanted,
    check_images,
    float32_default,
    one_by_one,
    pool_mean,
)
from vitbackbone.images import Preprocess
from vitbackbone.model.config import ViTConfig
from vitbackbone.model.layers import Block
from vitbackbone.model.norms import make_norm
from vitbackbone.model.packing import Layout
from vitbackbone.model.vit import ViT

MULTIPLE = 8  # tokens of a tile are filled up with zeros to a multiple of it


class TiledViT(ViT):
    """A Vision Transformer whose images are several tiles of `config.image_size`.

    An image is padded at the right and bottom to whole tiles, in one of `config.tiles.arrangements`. The map covers the
    image. `cls` is the CLS token of the first tile, and `registers` are the CLS tokens of the others, row-major. The
    blocks are the layers, and one more layer is the network's own output: the last block beside some earlier ones,
    channel by channel.

    Raises `ValueError` on a configuration without tiles.
    """

    @float32_default()
    def __init__(self, config: ViTConfig, preprocess: Preprocess | None = None, name: str = "vit") -> None:
        super().__init__(config, preprocess, name)
        if config.tiles is None:
            raise ValueError("a TiledViT needs tiles in its configuration")
        self.tiles, dim = config.tiles, config.dim
        count, kinds = self.tiles.count, len(self.tiles.arrangements)
        tokens = 1 + config.grid[0] * config.grid[1]
        # a vector for each tile of each arrangement
        self.tile_embed = nn.Parameter(torch.zeros(kinds, count, 1, dim))
        self.tile_positions = nn.Parameter(torch.zeros(kinds, count, tokens, dim))
        self.tile_embed_across = nn.Parameter(torch.zeros(kinds, count, 1, dim))
        around = replace(config, norm_eps=self.tiles.norm_eps)
        self.norm_pre, self.norm_within = make_norm(around), make_norm(around)
        gated = replace(config, layer_scale=True)
        self.across = nn.ModuleList(Block(gated, index) for index in range(self.tiles.depth))
        depth, wide = config.depth + self.tiles.depth, dim * (1 + len(self.tiles.taps))
        self.spec = replace(
            self.spec,
            dim=wide,
            depth=depth + 1,
            num_registers=count - 1,
            has_norm=False,
            dims=(*([dim] * depth), wide),
            strides=(),
            pooled_dim=wide,
            pooled_dims=(*([dim] * depth), wide),
        )

    def forward(self, images: Images, asked: Asked | None = None, mask: Any = None, keep: Any = None) -> Any:
        """See `BackboneModule`. The images of a list run one by one. Masks and kept patches are refused."""
        asked = asked or self.last
        check_images(images, self.channels)
        if mask is not None or keep is not None:
            raise ValueError(f"{self.spec.name} runs whole tiles; it takes no mask= and no keep=")
        return asked.answer(one_by_one(partial(self._features, asked=asked), images))

    def forward_kept(self, images: Any, keep: Any) -> Any:
        """Raise `ValueError`: patches cannot be dropped from tiles."""
        raise ValueError(f"{self.spec.name} runs whole tiles, so that no patch can be dropped")

    def _features(self, images: Float[Tensor, "B C H W"], asked: Asked) -> Mapping[Wanted, Features]:
        if asked.part == "attention":
            raise ValueError(f"{self.spec.name} has no attention map of an image, because each tile has its own tokens")
        kind = self.arrangement(images.shape[-2], images.shape[-1])
        x = self.embed_tiles(images, kind)
        seen = self._seen(kind, x.shape[2], x.device).expand(len(x), -1, -1, -1)
        layout = Layout(((1, x.shape[1] * x.shape[2]),))
        x, outputs, taps = x.flatten(1, 2), {}, []
        wanted = {layer for layer, _ in asked.wanted}
        for i in range(min(asked.deepest + 1, self.spec.depth - 1)):
            if i == self.config.depth:
                x = self.norm_within(x).unflatten(1, (self.tiles.count, -1))
                x = (x + self.tile_embed_across[kind]).flatten(1, 2)
            block = self.blocks[i] if i < self.config.depth else self.across[i - self.config.depth]
            x = block(x, layout, seen)
            if i in wanted:
                outputs[i, False] = self._map(x, kind, images)
            if i in self.tiles.taps:
                taps.append((i, x))
        if asked.deepest == self.spec.depth - 1:
            # upstream lays the taps side by side innermost: all values of a channel before the next channel
            order = [dict(taps)[i] for i in self.tiles.taps]
            beside = [torch.stack(order, dim=-1).flatten(2)] if order else []
            outputs[asked.deepest, False] = self._map(torch.cat([x, *beside], dim=2), kind, images)
        return outputs

    def arrangement(self, height: int, width: int) -> int:
        """Return the arrangement of tiles for images of a size. Raises `ValueError` if there is none."""
        side = self.config.image_size[0]
        rows, columns = -(-height // side), -(-width // side)
        exact = height % side == 0 and width % side == 0
        if not exact and self.config.indivisible == "refuse":
            raise ValueError(
                f"images are {height} x {width}, which tiles of {side} do not fill; resize them to {rows * side} x "
                f"{columns * side}, or load the backbone with indivisible='pad'"
            )
        if (rows, columns) not in self.tiles.arrangements:
            known = ", ".join(f"{side * r} x {side * c}" for r, c in self.tiles.arrangements)
            raise ValueError(
                f"images are {height} x {width}, {rows} x {columns} tiles of {side} pixels; {self.spec.name} takes "
                f"images of up to {known}. Resize them"
            )
        return self.tiles.arrangements.index((rows, columns))

    def embed_tiles(self, images: Float[Tensor, "B C H W"], kind: int) -> Float[Tensor, "B S n D"]:
        """Return the tokens of each tile: CLS, its patches, and zeros up to a multiple of 8."""
        side, (rows, columns) = self.config.image_size[0], self.tiles.arrangements[kind]
        images = images.to(self.patch_embed.proj.weight.dtype)
        images = F.pad(images, (0, columns * side - images.shape[3], 0, rows * side - images.shape[2]))
        tiles = rearrange(images, "B C (r h) (c w) -> B (r c) C h w", r=rows, c=columns)
        empty = tiles.new_zeros(len(tiles), self.tiles.count - rows * columns, *tiles.shape[2:])
        x = self.patch_embed(torch.cat([tiles, empty], dim=1).flatten(0, 1)).flatten(2).mT
        x = x.unflatten(0, (-1, self.tiles.count)) + self.tile_embed[kind]
        assert self.cls_token is not None
        assert self.pos_embed is not None
        x = x + self.pos_embed(self.config.grid, x)
        x = torch.cat([self.cls_token[None].expand(len(x), self.tiles.count, 1, -1), x], dim=2)
        x = self.norm_pre(x + self.tile_positions[kind])
        return F.pad(x, (0, 0, 0, -x.shape[2] % MULTIPLE))

    def _seen(self, kind: int, tokens: int, device: torch.device) -> Bool[Tensor, "1 1 T T"]:
        """Return which tokens attend to which: all, but that empty ones do not see each other."""
        rows, columns = self.tiles.arrangements[kind]
        real = torch.zeros(self.tiles.count, tokens, dtype=torch.bool, device=device)
        real[: rows * columns, : 1 + self.config.grid[0] * self.config.grid[1]] = True
        real = real.flatten()
        return (real[:, None] | real)[None, None]

    def _map(self, x: Float[Tensor, "B T D"], kind: int, images: Tensor) -> Features:
        """Return the features of the images from the tokens of all tiles."""
        (rows, columns), (h, w) = self.tiles.arrangements[kind], self.config.grid
        tiles = x.unflatten(1, (self.tiles.count, -1))
        patches = rearrange(
            tiles[:, : rows * columns, 1 : 1 + h * w],
            "B (r c) (h w) D -> B D (r h) (c w)",
            **{"r": rows, "c": columns, "h": h, "w": w},
        )
        geometry = Geometry.of(images, self.config.patch_size)
        height, width = geometry.grid
        return Features(tiles[:, 0, 0], tiles[:, 1:, 0], patches[:, :, :height, :width], geometry, pool_mean)

    def _maps(self, *args: Any) -> dict[Wanted, Attention]:
        raise ValueError(f"{self.spec.name} has no attention map of an image")


def make_vit(config: ViTConfig, preprocess: Preprocess | None = None, name: str = "vit") -> ViT:
    """Build the network of a configuration: over whole images, or over tiles."""
    return ViT(config, preprocess, name) if config.tiles is None else TiledViT(config, preprocess, name)
