"""Large images in windows: what each patch is made of, what is read at a time, and what is refused."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.backbones import BACKBONES, QUICK
from tests.helpers import cases, photo, relative_error, tiny_vit
from vitbackbone import Asked, BackboneModule, BackboneSpec, Features, Geometry, Preprocess, load_backbone, tile


class Pixels(BackboneModule):
    """A backbone that sees no further than the patch: its pixels as they are, and half of them as another layer."""

    preprocess = Preprocess((16, 16))
    spec = BackboneSpec("pixels", 3 * 16, 2, 0, 4, 0, False, False, (16, 16), dims=(3 * 4, 3 * 16), strides=(2, 4))

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[tuple[int, ...]] = []

    def forward(self, images: Tensor, asked: Asked | None = None) -> Any:
        asked = asked or self.last
        if asked.part == "attention":
            raise ValueError("pixels attend to nothing")
        self.ran.append(tuple(images.shape))
        outputs = {}
        for layer, norm in asked.wanted:
            stride = self.spec.strides[layer]
            height, width = images.shape[-2:]
            patches = F.pixel_unshuffle(F.pad(images, (0, -width % stride, 0, -height % stride)), stride)
            geometry = Geometry(((height, width),) * len(images), stride)
            outputs[layer, norm] = Features(None, images.new_zeros(len(images), 0, len(patches[0])), patches, geometry)
        return asked.answer(outputs)


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    sides=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    overlap=st.integers(0, 5),
    batch_size=st.integers(1, 5),
    layer=st.sampled_from([0, 1, -1]),
)
def test_windows_of_a_local_network_join_to_the_whole(
    height: int, width: int, sides: tuple[int, int], overlap: int, batch_size: int, layer: int
) -> None:
    """At any size, overlap and batch size, nothing is lost, moved, or counted twice."""
    backbone, x = Pixels(), images(3, height, width)
    overlap = min(overlap, min(sides) - 1)
    features = tile(backbone, x, (4 * sides[0], 4 * sides[1]), 4 * overlap, batch_size, layer)
    assert max(count for count, *_ in backbone.ran) <= batch_size
    assert all(h <= 4 * sides[0] and w <= 4 * sides[1] for *_, h, w in backbone.ran)
    (whole,) = backbone.forward_layers(x[None], [layer], norm=False)
    assert features.geometry == whole.geometry
    assert relative_error(features.patches, whole.patches) < 1e-6
    assert features.cls is None
    assert features.registers.shape == whole.registers.shape


def test_a_patch_that_one_window_shows_is_what_the_backbone_makes_of_it() -> None:
    """A patch in two windows is a mean of both, weighted by its distance from the end of each window."""
    backbone, x = tiny_vit(), images(3, 32, 56)
    with torch.inference_mode():
        left, right = (backbone(x[None, :, :, start : start + 32]).patches for start in (0, 24))
    patches = tile(backbone, x, 32, 8).patches
    assert relative_error(patches[..., :3], left[..., :3]) < 1e-5
    assert relative_error(patches[..., 4:], right[..., 1:]) < 1e-5
    assert relative_error(patches[..., 3], (left[..., 3] + right[..., 0]) / 2) < 1e-5
    with torch.inference_mode():
        left, right = (backbone(x[None, :, :, start : start + 32]).patches for start in (0, 16))
    wider = tile(backbone, x[..., :48], 32, 16).patches
    assert relative_error(wider[..., 2], (2 * left[..., 2] + right[..., 0]) / 3) < 1e-5
    assert relative_error(wider[..., 3], (left[..., 3] + 2 * right[..., 1]) / 3) < 1e-5


def test_what_is_the_same_everywhere_shows_no_seams() -> None:
    backbone = tiny_vit(position="none", pool="mean", cls=False)
    patches = tile(backbone, torch.full((3, 80, 104), 0.7), 32, 16).patches
    assert relative_error(patches, patches[..., :1, :1].expand_as(patches)) < 1e-5


@pytest.mark.parametrize("name", cases(BACKBONES, QUICK))
def test_an_image_within_one_window_is_as_the_backbone_has_it(name: str) -> None:
    backbone, x = BACKBONES[name], images(3, 45, 61)
    with torch.inference_mode():
        alone = backbone(x[None])
    features = tile(backbone, x, 64, 0)
    assert relative_error(features.patches, alone.patches) < 1e-6
    assert features.geometry == alone.geometry
    assert relative_error(features.pooled, alone.patches.mean(dim=(2, 3))) < 1e-5


def test_a_photo_on_disk_is_read_window_by_window(tmp_path: Path) -> None:
    """uint8 pixels are prepared as the backbone wants them, and never resized."""

    class Recorded(np.ndarray):
        def __getitem__(self, index: object) -> object:
            part = super().__getitem__(index)
            read.append(part.shape)
            return part

    read: list[tuple[int, ...]] = []
    backbone = load_backbone("nano")
    pixels = np.asarray(photo(100, 150))
    np.save(tmp_path / "slide.npy", pixels)
    slide = np.load(tmp_path / "slide.npy", mmap_mode="r").view(Recorded)
    features = tile(backbone, slide, (64, 48), 16)
    assert read
    assert all(shape[0] <= 64 and shape[1] <= 48 for shape in read)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.preprocess.mean, backbone.preprocess.std))
    normalised = (torch.tensor(pixels).permute(2, 0, 1) / 255 - mean) / std
    for same in (normalised, normalised.numpy(), torch.tensor(pixels)):
        assert relative_error(tile(backbone, same, (64, 48), 16).patches, features.patches) < 1e-5


def test_features_are_floats_that_a_head_can_learn_from() -> None:
    """This holds in half precision too, and in training, and the mode of the backbone stays."""
    backbone = tiny_vit(drop_path=0.9).to(torch.bfloat16).train()
    x = images(3, 40, 40)
    features = tile(backbone, x, 32, 8)
    assert features.patches.dtype == torch.float32
    assert torch.equal(features.patches, tile(backbone, x, 32, 8).patches)
    assert backbone.training
    weight = torch.ones(16, requires_grad=True)
    (features.patches * weight[:, None, None]).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(1, 3, 32, 32)}, r"image is torch.float32 of shape \(1, 3, 32, 32\); want"),
        ({"image": torch.zeros(3, 32, 32, dtype=torch.uint8)}, r"image is torch.uint8 of shape \(3, 32, 32\); want"),
        ({"image": np.zeros((3, 32, 32), np.int32)}, r"image is int32 of shape \(3, 32, 32\); want"),
        ({"image": np.zeros((0, 32, 3), np.uint8)}, r"image is uint8 of shape \(0, 32, 3\); want"),
        ({"size": 30}, r"size=\(30, 30\); want multiples of the backbone's stride, 8"),
        ({"size": 0}, "size must be at least 1 pixel, got 0"),
        ({"overlap": 32}, r"overlap=32; want a multiple of 8 from 0 to less than the window, \(32, 32\)"),
        ({"overlap": 4}, "overlap=4; want a multiple of 8"),
        ({"overlap": -8}, "overlap=-8; want a multiple of 8"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"layer": 3}, r"layers=\[3\]: want block indices"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_what_cannot_be_tiled_is_refused(change: dict[str, object], message: str) -> None:
    arguments = {"image": torch.zeros(3, 64, 64), "size": 32, "overlap": 8}
    with pytest.raises(ValueError, match=message):
        tile(tiny_vit(), **{**arguments, **change})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["cls", "windows", "swin sized", "swinv2 fixed", "resnet"])
def test_a_backbone_in_half_precision_gives_a_map_that_is_finite(name: str, dtype: torch.dtype) -> None:
    """At the right and bottom the windows are smaller, and a Swin pads its own windows there."""
    image = images(3, 150, 110)
    want = tile(BACKBONES[name], image, 96, 32)
    got = tile(copy.deepcopy(BACKBONES[name]).to(dtype), image, 96, 32)
    for ours, theirs in [(got.patches, want.patches), (got.pooled, want.pooled)]:
        assert torch.isfinite(ours).all()
        assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.99
