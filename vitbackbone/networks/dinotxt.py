"""dino.txt's blocks behind a frozen Vision Transformer, which carry its tokens into the space of texts.

Jose et al. 2024, "DINOv2 meets text".

Axes: `B` batch, `N` tokens, `D` width, `h w` patch grid.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitbackbone.contract import (
    BackboneSpec,
    Features,
    Pooled,
    Wanted,
    float32_default,
)
from vitbackbone.model import Block, Layout, ViT, ViTConfig, make_norm
from vitbackbone.networks.behind import BackboneBehind


@dataclass(frozen=True)
class TextHeadConfig:
    """The shape of the blocks."""

    depth: int
    mlp_dim: int  # of their gated MLP
    qkv_bias: bool = False
    projection_dim: int = 0  # width of a linear layer after the last norm; 0: none

    def blocks(self, dim: int, num_heads: int) -> ViTConfig:
        """Return the settings of the blocks of a width."""
        return ViTConfig(
            dim=dim,
            depth=max(self.depth, 1),
            num_heads=num_heads,
            mlp_dim=self.mlp_dim,
            mlp="swiglu",
            qkv_bias="qkv" if self.qkv_bias else "none",
            layer_scale=True,
            norm_eps=1e-5,
            position="none",
        )


class TextHeadBackbone(BackboneBehind):
    """A backbone of one layer: the tokens of a Vision Transformer's last layer after dino.txt's blocks.

    `pooled` is CLS beside the mean of the patches, in the space of the vectors of `load_text`. The second half of a
    text's vector belongs to the patches, and each patch can be compared with it. `backbone` is the Vision Transformer.
    Raises `ValueError` if the backbone has no CLS token.
    """

    @float32_default()
    def __init__(self, backbone: ViT, config: TextHeadConfig, name: str = "text head") -> None:
        own = backbone.spec
        if not own.has_cls:
            raise ValueError(f"{own.name} has no CLS token, which dino.txt's blocks read")
        blocks, width = config.blocks(own.dim, own.num_heads), config.projection_dim
        spec = BackboneSpec(
            name=name,
            dim=width or own.dim,
            depth=1,
            num_heads=own.num_heads,
            stride=own.stride,
            num_registers=own.num_registers,
            has_cls=True,
            has_norm=False,
            image_size=own.image_size,
            in_chans=own.in_chans,
            pooled_dim=2 * (width or own.dim),
        )
        super().__init__(backbone, config, spec)
        self.blocks = nn.ModuleList(Block(blocks, index) for index in range(config.depth))
        self.norm = make_norm(blocks) if config.depth else nn.Identity()
        self.projection = nn.Linear(own.dim, width, bias=False) if width else nn.Identity()

    def _run(self, images: Float[Tensor, "B C H W"], wanted: set[Wanted]) -> dict[Wanted, Features]:
        own: Features = self.backbone(images)
        assert own.cls is not None
        x = torch.cat([own.cls[:, None], own.registers, own.tokens], dim=1)
        layout, prefix = Layout(((1, x.shape[1]),)), self.spec.num_prefix
        for block in self.blocks:
            x = cast(Block, block)(x, layout)
        x = self.projection(self.norm(x))
        patches = x[:, prefix:].mT.unflatten(2, own.grid)
        pooled = torch.cat([x[:, 0], x[:, prefix:].mean(dim=1)], dim=1)
        return {(0, False): Features(x[:, 0], x[:, 1:prefix], patches, own.geometry, Pooled(pooled))}
