"""Feature pyramids: against the formula written in another way, against torchvision, and where their pixels lie."""

from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from heads import (
    FeaturePyramid,
    SimpleFeaturePyramid,
    attach,
    create_head,
    feature_pyramid,
    list_heads,
    load_head,
    save_head,
)
from tests.helpers import randomise, relative_error, tiny_vit
from tests.timm_networks import BACKBONES
from vitbackbone import Features, Geometry, ViT

LIMIT = 1e-5


def vit(patch: int, **fields: object) -> ViT:
    return tiny_vit(patch_size=patch, image_size=(2 * patch, 2 * patch), **fields)


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


# ---- ViTDet's pyramid, by sums over pixels instead of layers --------------------------------------------------------


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1, keepdim=True)
    return centred / (variance + 1e-6).sqrt() * weight[:, None, None] + bias[:, None, None]


def twice(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A transposed convolution of kernel and stride 2: every pixel becomes four."""
    B, _, h, w = x.shape
    four = torch.einsum("bchw,coij->bohiwj", x, weight).reshape(B, -1, 2 * h, 2 * w)
    return four + bias[:, None, None]


def neighbours(x: Tensor, weight: Tensor) -> Tensor:
    """A 3x3 convolution with zeros around."""
    h, w = x.shape[2:]
    around = F.pad(x, (1, 1, 1, 1))
    return sum(
        torch.einsum("oc,bchw->bohw", weight[:, :, i, j], around[:, :, i : i + h, j : j + w])
        for i in range(3)
        for j in range(3)
    )


def largest(x: Tensor, side: int) -> Tensor:
    """Max pooling in squares of `side`, those at the edge smaller."""
    rows = [part.amax(dim=2) for part in x.split(side, dim=2)]
    return torch.stack([part.amax(dim=3) for part in torch.stack(rows, dim=2).split(side, dim=3)], dim=3)


def formula(head: SimpleFeaturePyramid, x: Tensor, base: int) -> list[Tensor]:
    """Each level of a map of stride `base`, with the head's parameters, taken in the order of the layers."""
    levels = []
    for branch, stride in zip(head.branches, head.strides, strict=True):
        parameters = iter(branch.parameters())
        y = x if stride <= base else largest(x, stride // base)
        scale = base // stride
        while scale > 1:
            y = twice(y, next(parameters), next(parameters))
            scale //= 2
            if scale > 1:
                y = F.gelu(norm(y, next(parameters), next(parameters)))
        y = torch.einsum("oc,bchw->bohw", next(parameters)[:, :, 0, 0], y)
        y = norm(y, next(parameters), next(parameters))
        y = norm(neighbours(y, next(parameters)), next(parameters), next(parameters))
        assert next(parameters, None) is None
        levels.append(y)
    return levels


@pytest.mark.parametrize("patch", [4, 8, 16, 32])
@pytest.mark.parametrize("size", [(96, 160), (333, 117)])
def test_simple_pyramid_equals_the_formula(patch: int, size: tuple[int, int]) -> None:
    features = vit(patch)(images(2, 3, *size))
    head = randomise(SimpleFeaturePyramid(vit(patch).spec, channels=12), seed=3)
    with torch.inference_mode():
        levels = head(features)
        want = formula(head, features.patches, patch)
    assert list(levels) == ["0", "1", "2", "3", "pool"]
    for name, expected in zip("0123", want, strict=True):
        assert relative_error(levels[name], expected) < LIMIT
    assert torch.equal(levels["pool"], levels["3"][:, :, ::2, ::2])


def test_simple_pyramid_of_patch_14_is_that_of_its_map_resampled_to_16() -> None:
    """112 is a multiple of both, so the maps cover the same area and torch's own resampling applies."""
    features = vit(14)(images(2, 3, 112, 224))
    head = randomise(SimpleFeaturePyramid(vit(14).spec, channels=12), seed=3)
    x = F.interpolate(features.patches, (7, 14), mode="bilinear", align_corners=False)
    with torch.inference_mode():
        for ours, expected in zip(head(features).values(), formula(head, x, 16), strict=False):
            assert relative_error(ours, expected) < LIMIT


def test_the_norms_and_biases_are_those_of_vitdet() -> None:
    """The parameters of detectron2's module from 768 channels at stride 16 to 256, counted by hand."""
    head = SimpleFeaturePyramid(vit(16, dim=768, num_heads=12).spec)
    tail = [c * 256 + 512 + 256 * 256 * 9 + 512 for c in (192, 384, 768, 768)]
    up = [(768 * 384 * 4 + 384) + 2 * 384 + (384 * 192 * 4 + 192), 768 * 384 * 4 + 384, 0, 0]
    counts = [sum(p.numel() for p in branch.parameters()) for branch in head.branches]
    assert counts == [a + b for a, b in zip(up, tail, strict=True)]


@pytest.mark.parametrize("patch", [4, 14, 16])
@pytest.mark.parametrize("size", [(480, 360), (333, 517), (64, 448)])
def test_every_level_covers_the_image_at_its_stride(patch: int, size: tuple[int, int]) -> None:
    spec = vit(patch).spec
    sizes = (size,)
    grid = Geometry(sizes, patch).grid
    base = {4: 4, 14: 16, 16: 16}[patch]
    with torch.inference_mode():
        levels = SimpleFeaturePyramid(spec, channels=4)(features_of(torch.zeros(1, 16, *grid), sizes, patch))
    for level, stride in zip(levels.values(), (4, 8, 16, 32, 64), strict=True):
        covered = [base * -(-side // base) for side in size]  # the image and what is padded for whole patches
        assert level.shape == (1, 4, *(-(-side // stride) for side in covered))


def features_of(patches: Tensor, sizes: tuple[tuple[int, int], ...], stride: int) -> Features:
    return Features(None, patches.new_empty(len(patches), 0, patches.shape[1]), patches, Geometry(sizes, stride))


@pytest.mark.parametrize("patch", [4, 14, 16])
def test_a_pixel_of_a_level_shows_the_place_of_the_image_that_it_should(patch: int) -> None:
    """One patch that differs from all others, far from the corner: the change of every level is around it."""
    size, place = (333, 517), (254.0, 430.0)  # (y, x)
    sizes = (size,)
    grid = Geometry(sizes, patch).grid
    row, column = (int(v // patch) for v in place)
    plain = 0.1 * images(1, 16, *grid)
    marked = plain.clone()
    marked[0, :, row, column] += 5
    head = randomise(SimpleFeaturePyramid(vit(patch).spec, channels=8), seed=3)
    with torch.inference_mode():
        before, after = (head(features_of(x, sizes, patch)) for x in (plain, marked))
        for name, stride in {"0": 4, "1": 8, "2": 16, "3": 32}.items():
            change = (after[name] - before[name]).abs().sum(dim=1)[0]
            centres = [(torch.arange(n) + 0.5) * stride for n in change.shape]
            y, x = ((change.sum(1 - axis) * centres[axis]).sum() / change.sum() for axis in (0, 1))
            truth = (row + 0.5) * patch, (column + 0.5) * patch
            assert abs(y - truth[0]) < max(stride, 8), (name, y, truth)
            assert abs(x - truth[1]) < max(stride, 8), (name, x, truth)


@pytest.mark.parametrize("patch", [14, 16])
def test_images_of_different_sizes_are_as_if_alone(patch: int) -> None:
    backbone = vit(patch)
    pyramid = attach(backbone, {"p": randomise(SimpleFeaturePyramid(backbone.spec, channels=8))}).eval()
    several = [images(3, 64, 96), images(3, 80, 50), images(3, 33, 47)]
    with torch.inference_mode():
        together = pyramid(several)["p"]
        for i, image in enumerate(several):
            for name, alone in pyramid(image[None])["p"].items():
                h, w = alone.shape[2:]
                assert relative_error(together[name][i : i + 1, :, :h, :w], alone) < LIMIT
                assert not together[name][i, :, h:].any()
                assert not together[name][i, :, :, w:].any()


# ---- networks with levels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet", "convnext"])
def test_fpn_equals_torchvisions(name: str) -> None:
    backbone = BACKBONES[name]
    spec = backbone.spec
    head = randomise(FeaturePyramid(spec, channels=12), seed=3)
    layers = [max(i for i in range(spec.depth) if spec.strides[i] == stride) for stride in (4, 8, 16, 32)]
    oracle = FeaturePyramidNetwork([spec.dims[i] for i in layers], 12)
    state = {}
    for kind, ours in {"inner_blocks": "laterals", "layer_blocks": "outputs"}.items():
        for i in range(4):
            for parameter in ("weight", "bias"):
                state[f"{kind}.{i}.0.{parameter}"] = head.state_dict()[f"{ours}.{i}.{parameter}"]
    oracle.load_state_dict(state)
    x = images(2, 3, 96, 160)
    with torch.inference_mode():
        levels = attach(backbone, {"p": head})(x)["p"]
        maps = backbone.forward_layers(x, layers, norm=False)
        want = oracle(OrderedDict((str(i), f.patches) for i, f in enumerate(maps)))
    for key, expected in want.items():
        assert relative_error(levels[key], expected) < LIMIT
    assert torch.equal(levels["pool"], levels["3"][:, :, ::2, ::2])


def test_fpn_at_a_size_that_the_strides_do_not_divide() -> None:
    backbone = BACKBONES["convnext"]
    with torch.inference_mode():
        levels = attach(backbone, {"p": FeaturePyramid(backbone.spec, channels=4)})(images(1, 3, 75, 101))["p"]
    assert [tuple(level.shape[2:]) for level in levels.values()] == [(19, 26), (10, 13), (5, 7), (3, 4), (2, 2)]


def test_fpn_takes_the_last_layer_of_each_stride() -> None:
    spec = replace(
        BACKBONES["convnext"].spec,
        depth=6,
        dims=(8, 9, 10, 11, 12, 13),
        strides=(4, 4, 8, 8, 16, 32),
        dim=13,
        pooled_dims=(),
    )
    assert FeaturePyramid(spec).layers == (1, 3, 4, 5)


def test_the_pyramid_that_suits_a_backbone() -> None:
    assert type(feature_pyramid(BACKBONES["convnext"].spec)) is FeaturePyramid
    assert type(feature_pyramid(BACKBONES["r26"].spec)) is SimpleFeaturePyramid
    assert feature_pyramid(vit(16).spec).needs.norm
    bare = vit(16, final_norm=False)
    with torch.inference_mode():
        attach(bare, {"p": feature_pyramid(bare.spec)})(images(1, 3, 64, 64))
    levels = feature_pyramid(vit(16).spec, strides=(16, 32))
    assert type(levels) is SimpleFeaturePyramid
    assert levels.strides == (16, 32)


# ---- house ---------------------------------------------------------------------------------------------------------


def test_pyramids_are_made_and_kept_by_name(tmp_path: Path) -> None:
    assert {"simple_pyramid", "fpn"} <= set(list_heads())
    backbone = vit(16)
    head = randomise(create_head("simple_pyramid", backbone.spec, channels=8, strides=[8, 16]))
    save_head(head, tmp_path, backbone)
    again = load_head(tmp_path, backbone)
    features = backbone(images(1, 3, 48, 80))
    with torch.inference_mode():
        assert [*again(features)] == ["0", "1", "pool"]
        assert all(torch.equal(a, b) for a, b in zip(head(features).values(), again(features).values(), strict=True))


@pytest.mark.parametrize("strides", [(), (4, 12), (8, 4), (4, 4), (0, 4)])
def test_strides_that_are_no_powers_of_two_in_order_are_refused(strides: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="powers of two, ascending"):
        SimpleFeaturePyramid(vit(16).spec, strides=strides)


def test_wrong_backbones_are_refused() -> None:
    with pytest.raises(ValueError, match="no layer of stride 4, 8, 32, only of 16; use SimpleFeaturePyramid"):
        FeaturePyramid(vit(16).spec)
    bare = vit(16, final_norm=False)
    with pytest.raises(ValueError, match="norm=False"):
        attach(bare, {"p": SimpleFeaturePyramid(bare.spec)})


def test_gradients_reach_every_parameter() -> None:
    for backbone in (vit(14), BACKBONES["convnext"]):
        head = feature_pyramid(backbone.spec)
        levels = [*attach(backbone, {"p": head})(images(1, 3, 64, 64))["p"].values()]
        sum(level.square().sum() for level in levels).backward()
        assert all(p.grad is not None and p.grad.any() for p in head.parameters())
        assert all(fine.shape[2] > coarse.shape[2] for fine, coarse in pairwise(levels))
