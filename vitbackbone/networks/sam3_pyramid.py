"""SAM 3's feature pyramid: the maps of one layer at several scales (Li et al. 2022, ViTDet; Meta 2025).

Axes: `B` batch, `D` width, `h w` patch grid.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from vitbackbone.contract import BackboneModule, Features, Geometry, Wanted, float32_default, pool_mean
from vitbackbone.networks.behind import BackboneBehind
from vitbackbone.networks.sam2_pyramid import pyramid_spec

SCALES = (4.0, 2.0, 1.0, 0.5)  # patches of a map for each patch of the layer, along each axis


@dataclass(frozen=True)
class ScaledFpnConfig:
    """The settings of a pyramid. Raises `ValueError` unless the scales are known and descend."""

    dim: int  # width of every map
    scales: tuple[float, ...]

    def __post_init__(self) -> None:
        descending = list(self.scales) == sorted(set(self.scales), reverse=True)
        if self.dim < 1 or not self.scales or not descending or not {*self.scales} <= {*SCALES}:
            known = ", ".join(map(str, SCALES))
            raise ValueError(f"a pyramid of scales {self.scales} and width {self.dim}; want some of {known}, in order")


class ScaledLevel(nn.Module):
    """One map: the layer at a scale, a linear layer, and a convolution of 3 x 3 patches.

    Half the scale takes the largest of 2 x 2 patches. Upstream drops the last row or column of an odd number, which
    keeps its own patch here.
    """

    def __init__(self, inputs: int, dim: int, scale: float) -> None:
        super().__init__()

        def twice(width: int) -> nn.Module:
            return nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2)

        layers: dict[float, list[nn.Module]] = {
            4.0: [twice(inputs), nn.GELU(), twice(inputs // 2)],
            2.0: [twice(inputs)],
            1.0: [],
            0.5: [nn.MaxPool2d(2, ceil_mode=True)],
        }
        self.scale_layers = nn.Sequential(*layers[scale])
        self.proj1 = nn.Conv2d(inputs // max(int(scale), 1), dim, 1)
        self.proj2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, maps: Float[Tensor, "B D h w"]) -> Float[Tensor, "B P H W"]:
        return self.proj2(self.proj1(self.scale_layers(maps)))


class ScaledFpnBackbone(BackboneBehind):
    """A backbone whose layers are the maps of a pyramid, from the finest to the coarsest.

    Each map is made from only the last layer. There is no CLS token, and `pooled` is the mean of a map. `backbone` is
    the network itself.

    Raises `ValueError` if a map would have patches of a fraction of a pixel.
    """

    @float32_default()
    def __init__(self, backbone: BackboneModule, config: ScaledFpnConfig, name: str = "pyramid") -> None:
        own = backbone.spec
        if any(own.stride % scale for scale in config.scales):
            raise ValueError(f"{own.name} has patches of {own.stride} pixels; they do not fit {config}")
        strides = tuple(int(own.stride / scale) for scale in config.scales)
        super().__init__(backbone, config, pyramid_spec(name, own, config.dim, strides))
        self.config = config
        self.fpn_layers = nn.ModuleList(ScaledLevel(own.dim, config.dim, scale) for scale in config.scales)

    def _run(self, images: Float[Tensor, "B C H W"], wanted: set[Wanted]) -> dict[Wanted, Features]:
        layer = self.backbone(images).patches
        none = layer.new_zeros(len(images), 0, self.config.dim)
        outputs: dict[Wanted, Features] = {}
        for i, norm in wanted:
            geometry = Geometry.of(images, self.spec.strides[i])
            h, w = geometry.grid
            outputs[i, norm] = Features(None, none, self.fpn_layers[i](layer)[:, :, :h, :w], geometry, pool_mean)
        return outputs
