"""C-RADIO's adaptors: the features of a teacher, predicted from the last layer of a Vision Transformer.

C-RADIO learns from several teachers at once, and has two small networks for each: one for a CLS token of its own, and
one for each patch (Ranzinger et al. 2024, "AM-RADIO"; NVlabs/RADIO, radio/adaptor_mlp.py and adaptor_generic.py).

Axes: `B` batch, `D` width, `P` width of the summary, `h w` patch grid.
"""

from dataclasses import dataclass
from typing import Literal, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitbackbone.contract import (
    BackboneSpec,
    Features,
    Geometry,
    Pooled,
    Wanted,
    float32_default,
)
from vitbackbone.model import Block, Layout, ViT, ViTConfig
from vitbackbone.networks.behind import BackboneBehind

Version = Literal["v1", "v2", "attn"]
ATTENDING = 16  # heads of the blocks of "attn" (NVlabs/RADIO, radio/adaptor_attn.py)


@dataclass(frozen=True)
class Mlp:
    """The shape of one network of an adaptor.

    "v1": linear layers with a LayerNorm and a ReLU after each but the last. "v2": a linear layer, residual branches of
    LayerNorm, GELU and a linear layer, and the same three without a residual. "attn": "v2" after blocks of a Vision
    Transformer, in which the patches of an image attend to each other.
    """

    version: Version
    inputs: int
    hidden: int
    outputs: int
    inner: int = 0  # hidden layers between the first and the last
    blocks: int = 0  # version="attn"
    mlp_dim: int = 0  # hidden width of the MLP of the blocks


@dataclass(frozen=True)
class AdaptorConfig:
    """The settings of one adaptor. Raises `ValueError` on values that contradict each other."""

    name: str
    token: int  # the prefix token that `summary` reads
    summary: Mlp
    patches: Mlp
    upsample: int = 1  # patches along a side that come out of one patch

    def __post_init__(self) -> None:
        if self.summary.version == "attn":
            raise ValueError(f"adaptor {self.name!r}: the network of the summary is 'attn'; want 'v1' or 'v2'")
        if self.upsample < 1 or self.patches.outputs % self.upsample**2:
            raise ValueError(
                f"adaptor {self.name!r}: {self.patches.outputs} outputs for upsample_factor={self.upsample}; want a "
                "multiple of its square"
            )


class Plain(nn.Module):
    """The network "v1"."""

    def __init__(self, shape: Mlp) -> None:
        super().__init__()
        self.fc1 = nn.Linear(shape.inputs, shape.hidden)
        self.norm = nn.LayerNorm(shape.hidden)
        layers = [
            each
            for _ in range(shape.inner)
            for each in (nn.Linear(shape.hidden, shape.hidden), nn.LayerNorm(shape.hidden), nn.ReLU())
        ]
        self.inner = nn.Sequential(*layers)
        self.fc2 = nn.Linear(shape.hidden, shape.outputs)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B E"]:
        return self.fc2(self.inner(self.norm(self.fc1(x)).relu()))


class Residual(nn.Module):
    """The network "v2"."""

    def __init__(self, shape: Mlp) -> None:
        super().__init__()
        self.fc1 = nn.Linear(shape.inputs, shape.hidden)
        self.blocks = nn.ModuleList(_branch(shape.hidden, shape.hidden) for _ in range(shape.inner))
        self.final = _branch(shape.hidden, shape.outputs)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B E"]:
        x = self.fc1(x)
        for block in self.blocks:
            x = x + block(x)
        return self.final(x)


def _branch(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, outputs))


class Attended(nn.Module):
    """The network "attn"."""

    def __init__(self, shape: Mlp) -> None:
        super().__init__()
        blocks = ViTConfig(
            dim=shape.inputs,
            depth=shape.blocks,
            num_heads=ATTENDING,
            mlp_dim=shape.mlp_dim,
            qkv_bias="none",
            layer_scale=True,
            position="none",
        )
        self.blocks = nn.ModuleList(Block(blocks, index) for index in range(shape.blocks))
        self.mlp = Residual(shape)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N E"]:
        layout = Layout(((1, x.shape[1]),))
        for block in self.blocks:
            x = cast(Block, block)(x, layout)
        return self.mlp(x)


NETWORKS: dict[Version, type[Plain] | type[Residual] | type[Attended]] = {
    "v1": Plain,
    "v2": Residual,
    "attn": Attended,
}


class AdaptorBackbone(BackboneBehind):
    """A backbone of one layer: an adaptor over the last layer of a Vision Transformer.

    `patches` are the teacher's features of each patch, and `pooled` is its summary of the image. There is no CLS token
    and there are no registers. `backbone` is the Vision Transformer itself.

    Raises `ValueError` if the networks do not fit the backbone.
    """

    @float32_default()
    def __init__(self, backbone: ViT, config: AdaptorConfig, name: str = "adaptor") -> None:
        own = backbone.spec
        wanted = own.dim, own.dim
        if (config.summary.inputs, config.patches.inputs) != wanted or config.token >= own.num_prefix:
            raise ValueError(
                f"adaptor {config.name!r} reads token {config.token} of width {config.summary.inputs} and patches of "
                f"width {config.patches.inputs}; {own.name} has {own.num_prefix} tokens beside patches of width "
                f"{own.dim}"
            )
        if own.stride % config.upsample:
            raise ValueError(
                f"adaptor {config.name!r}: upsample_factor={config.upsample} does not divide the patch size "
                f"{own.stride}"
            )
        spec = BackboneSpec(
            name=name,
            dim=config.patches.outputs // config.upsample**2,
            depth=1,
            num_heads=own.num_heads,
            stride=own.stride // config.upsample,
            num_registers=0,
            has_cls=False,
            has_norm=False,
            image_size=own.image_size,
            in_chans=own.in_chans,
            pooled_dim=config.summary.outputs,
        )
        super().__init__(backbone, config, spec)
        self.config = config
        self.summary = NETWORKS[config.summary.version](config.summary)
        self.patches = NETWORKS[config.patches.version](config.patches)

    def _run(self, images: Float[Tensor, "B C H W"], wanted: set[Wanted]) -> dict[Wanted, Features]:
        own: Features = self.backbone(images)
        summary = self.summary(_prefix(own)[:, self.config.token])
        geometry, u = Geometry.of(images, self.spec.stride), self.config.upsample
        maps = rearrange(self.patches(own.tokens), "B (h w) (u v D) -> B D (h u) (w v)", h=own.grid[0], u=u, v=u)
        h, w = geometry.grid
        none = maps.new_zeros(len(maps), 0, self.spec.dim)
        return {(0, False): Features(None, none, maps[:, :, :h, :w], geometry, Pooled(summary))}


def _prefix(features: Features) -> Float[Tensor, "B P D"]:
    cls = [] if features.cls is None else [features.cls[:, None]]
    return torch.cat([*cls, features.registers], dim=1)
