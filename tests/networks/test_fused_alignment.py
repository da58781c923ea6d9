"""The maps of the members of a `FusedBackbone` lie on one grid: a ramp stays where it is."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import relative_error
from tests.networks.fused_backbones import images, same_stride, two_strides
from vitbackbone import Attention, BackboneSpec, Features, Geometry, Preprocess
from vitbackbone.contract.backbone import check_images
from vitbackbone.contract.geometry import Images
from vitbackbone.networks.fused import FusedBackbone, Member


class Means(nn.Module):
    """The mean colour of each patch at several strides, as a feature pyramid that shows where it is. Layer i has i
    extra channels. Not a ViT, but a `Backbone`."""

    def __init__(self, *strides: int) -> None:
        super().__init__()
        self.strides = strides
        self.preprocess = Preprocess((32, 32))

    @property
    def spec(self) -> BackboneSpec:
        dims = tuple(3 + i for i in range(len(self.strides)))
        size = (32, 32)
        of = {"dims": dims, "strides": tuple(self.strides)}
        return BackboneSpec("means", dims[-1], len(dims), 1, self.strides[-1], 0, False, False, size, **of)

    def forward(self, images: Images) -> Features:
        return self.forward_layers(images, [-1], norm=False)[0]

    def forward_layers(self, images: Images, layers: Sequence[int], norm: bool = True) -> tuple[Features, ...]:
        check_images(images)
        return tuple(self._layer(images, layer % len(self.strides)) for layer in layers)

    def attention(self, images: Images, layers: Sequence[int]) -> tuple[Attention, ...]:
        raise ValueError("no attention")

    def _layer(self, images: Tensor, layer: int) -> Features:
        stride = self.strides[layer]
        geometry = Geometry((tuple(images.shape[-2:]),) * len(images), stride)
        bottom, right = geometry.padding[0]
        patches = F.avg_pool2d(F.pad(images, (0, right, 0, bottom)), stride)
        patches = F.pad(patches, (0, 0, 0, 0, 0, layer))
        return Features(None, patches.new_empty(len(patches), 0, patches.shape[1]), patches, geometry)


def ramp(height: int, width: int) -> Tensor:
    """Channels: x, y and x + 2y of the pixel centres."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y, x + 2 * y])[None]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(64, 130), st.integers(64, 130), st.sampled_from([(8, 16), (16, 8), (14, 16), (6, 8), (7, 32), (4, 8)])
)
def test_a_ramp_stays_where_it_is(height: int, width: int, strides: tuple[int, int]) -> None:
    """Both members agree about the place of every patch whose neighbours in the coarse map are whole."""
    fused = FusedBackbone([Member(Means(stride), 0, False) for stride in strides])
    features = fused(ramp(height, width))
    fine, coarse = min(strides), max(strides)
    assert features.geometry.stride == fused.spec.stride == fine
    rows, columns = (torch.arange(n) * fine + fine / 2 for n in features.grid)
    within = [
        (centres >= coarse / 2) & (centres <= side // coarse * coarse - coarse / 2) & (centres <= side - fine / 2)
        for centres, side in ((rows, height), (columns, width))
    ]
    expected = torch.stack(
        [
            columns.expand(len(rows), -1),
            rows[:, None].expand(-1, len(columns)),
            columns + 2 * rows[:, None],
        ]
    )
    for part in features.patches[0].split(3):
        difference = (part - expected)[:, within[0]][:, :, within[1]]
        assert difference.numel()
        assert difference.abs().max() < 1e-3  # pixels


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_coarse_map_is_interpolated_as_torch_does(order: tuple[int, int]) -> None:
    members = [two_strides()[i] for i in order]
    fused = FusedBackbone(members)
    x = images(2, 6, 48, 80)
    parts = [
        part.backbone.forward_layers(picture, [part.layer])[0].patches
        for part, picture in zip(members, x.split(3, dim=1), strict=True)
    ]
    coarse, fine = (parts[order.index(i)] for i in (0, 1))
    enlarged = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
    expected = [enlarged, fine] if order == (0, 1) else [fine, enlarged]
    got = fused(x).patches
    assert relative_error(got, torch.cat(expected, dim=1)) < 1e-6
    where = slice(8, 24) if order == (0, 1) else slice(0, 16)
    assert torch.equal(got[:, where], fine)


def test_a_member_may_be_any_backbone_and_any_of_its_stages() -> None:
    pyramid = Means(4, 8, 16)
    fused = FusedBackbone([Member(pyramid, 1, False), same_stride()[0]])
    assert (fused.spec.dim, fused.spec.stride) == (4 + 16, 8)
    x = images(2, 3, 40, 41)
    assert torch.equal(fused(x).patches[:, :4], pyramid.forward_layers(x, [1])[0].patches)
    deep = FusedBackbone([Member(pyramid, -1, False), Member(pyramid, 0, False)])
    assert (deep.spec.dim, deep.spec.stride) == (5 + 3, 4)
    assert deep(x).patches.shape == (2, 8, 10, 11)
