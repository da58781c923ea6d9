"""SAM 2's feature pyramid over the levels of a hierarchy (Lin et al. 2017; Ravi et al. 2024).

Axes: `B` batch, `D` width, `h w` patch grid.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.contract import (
    BackboneModule,
    BackboneSpec,
    Features,
    Wanted,
    float32_default,
    pool_mean,
)
from vitbackbone.networks.behind import BackboneBehind


@dataclass(frozen=True)
class FpnConfig:
    """The settings of a pyramid. Raises `ValueError` on levels that do not exist."""

    dim: int  # width of every map
    levels: int  # maps that are returned, from the finest level on
    top_down: tuple[int, ...]  # levels, 0 is the finest, to which the next coarser map is added

    def __post_init__(self) -> None:
        if self.dim < 1 or self.levels < 1:
            raise ValueError(f"a pyramid of {self.levels} levels of width {self.dim}; want at least 1 of each")


def pyramid_spec(name: str, own: BackboneSpec, dim: int, strides: tuple[int, ...]) -> BackboneSpec:
    """Return the description of a pyramid over a network that is described by `own`: a layer for each stride."""
    return BackboneSpec(
        name=name,
        dim=dim,
        depth=len(strides),
        num_heads=0,
        stride=strides[-1],
        num_registers=0,
        has_cls=False,
        has_norm=False,
        image_size=own.image_size,
        in_chans=own.in_chans,
        strides=strides,
    )


class FpnBackbone(BackboneBehind):
    """A backbone whose layers are the maps of a pyramid, from the finest to the coarsest.

    Every level of the hierarchy has a linear layer. From the coarsest level on, some levels add the next coarser map,
    twice as large. There is no CLS token, and `pooled` is the mean of a map. `backbone` is the hierarchy itself.

    Raises `ValueError` if the hierarchy has fewer levels, or levels whose strides do not double.
    """

    @float32_default()
    def __init__(self, backbone: BackboneModule, config: FpnConfig, name: str = "pyramid") -> None:
        own = backbone.spec
        doubled = all(b == 2 * a for a, b in zip(own.strides, own.strides[1:], strict=False))
        if config.levels > own.depth or not doubled or any(not 0 <= i < own.depth for i in config.top_down):
            raise ValueError(f"{own.name} has levels of strides {own.strides}; they do not fit {config}")
        strides = own.strides[: config.levels]
        super().__init__(backbone, config, pyramid_spec(name, own, config.dim, strides))
        self.config = config
        self.laterals = nn.ModuleList(nn.Conv2d(dim, config.dim, 1) for dim in own.dims)

    def _run(self, images: Float[Tensor, "B C H W"], wanted: set[Wanted]) -> dict[Wanted, Features]:
        levels = self.backbone.forward_layers(images, range(self.backbone.spec.depth), norm=False)
        none = levels[0].patches.new_zeros(len(images), 0, self.config.dim)
        outputs: dict[Wanted, Features] = {}
        above: Tensor | None = None
        for i in reversed(range(len(levels))):
            maps = self.laterals[i](levels[i].patches)
            if above is not None and i in self.config.top_down:
                maps = maps + _doubled(above, maps)
            above = maps
            if (i, False) in wanted:
                outputs[i, False] = Features(None, none, maps, levels[i].geometry, pool_mean)
        return outputs


def _doubled(coarse: Float[Tensor, "B D _ _"], fine: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
    """Return each value of a map for 2 x 2 patches, without those beyond the finer map."""
    wide = F.interpolate(coarse.float(), scale_factor=2.0, mode="nearest").to(fine.dtype)
    return wide[:, :, : fine.shape[2], : fine.shape[3]]
