"""Several backbones as one: the contract, alignment, OpenVLA's preprocessing and weights, and what takes a backbone."""

import copy
import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import functional as TVF

from tests.helpers import photo, randomise, relative_error, save_photo, tiny_vit
from vitbackbone import Attention, Backbone, BackboneSpec, Features, Geometry, ImageFeatures, Preprocess, View, ViT
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.formats.openvla import split_openvla
from vitbackbone.checkpoints.rules import ConversionError, convert
from vitbackbone.checkpoints.zoo import ZOO
from vitbackbone.cli.probing import check_same_backbone
from vitbackbone.contract.backbone import check_images
from vitbackbone.contract.fingerprint import weights_sha256
from vitbackbone.contract.geometry import Images
from vitbackbone.images.preprocess import HALF
from vitbackbone.inspection import show
from vitbackbone.networks.fused import FusedBackbone, FusedConfig, FusedPreprocess, Member, fuse
from vitbackbone.store import extract
from vitbackbone.store.locate import Locator
from vitbackbone.store.manifest import make_manifest
from vitbackbone.store.reader import ImageReader

FIRST = Preprocess((32, 32), 1.0)
SECOND = Preprocess((32, 32), 0.9, interpolation="bilinear", mean=HALF, std=(0.4, 0.5, 0.6))


def member(seed: int, layer: int, norm: bool, preprocess: Preprocess, **fields: object) -> Member:
    backbone = tiny_vit(seed, **fields)
    backbone.preprocess = preprocess
    return Member(backbone, layer, norm)


def same_stride() -> list[Member]:
    """As OpenVLA's: one with CLS and registers, one without either; second-to-last blocks, no norm."""
    return [
        member(0, -2, False, FIRST, num_registers=4),
        member(1, -2, False, SECOND, dim=24, num_heads=3, cls=False, pool="mean"),
    ]


def two_strides() -> list[Member]:
    """The coarse one first; both normed, both with CLS."""
    return [
        member(2, -1, True, FIRST, patch_size=16, dim=8),
        member(3, 1, True, SECOND, num_registers=2),
    ]


FUSED = {
    "same stride": FusedBackbone(same_stride(), name="pair"),
    "two strides": FusedBackbone(two_strides(), name="pair"),
    "three": FusedBackbone([*same_stride(), two_strides()[0]], name="three"),
    "one": FusedBackbone(two_strides()[1:], name="one"),
}


@pytest.fixture(params=FUSED)
def fused(request: pytest.FixtureRequest) -> FusedBackbone:
    return FUSED[request.param]


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def channels(fused: FusedBackbone) -> int:
    return 3 * len(fused.members)


# ---- the contract -------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), batch=st.integers(1, 3), whole=st.booleans())
@pytest.mark.parametrize("name", FUSED)
def test_any_size_gives_the_shapes_that_the_spec_promises(
    name: str, height: int, width: int, batch: int, whole: bool
) -> None:
    fused = FUSED[name]
    spec = fused.spec
    with torch.inference_mode():
        features = fused(images(batch, channels(fused) if whole else 3, height, width))
    h, w = -(-height // spec.stride), -(-width // spec.stride)
    assert features.patches.shape == (batch, spec.dim, h, w)
    assert features.grid == (h, w)
    assert features.registers.shape == (batch, 0, spec.dim)
    assert (features.cls is not None) == spec.has_cls
    assert features.cls is None or features.cls.shape == (batch, spec.dim)
    assert features.pooled.shape == (batch, spec.dim)
    assert features.valid.shape == (batch, h, w)
    assert features.valid.all()
    assert features.geometry.sizes == ((height, width),) * batch
    assert torch.isfinite(features.patches).all()


def test_it_is_a_backbone_of_one_layer(fused: FusedBackbone) -> None:
    assert isinstance(fused, Backbone)
    assert (fused.spec.depth, fused.spec.num_registers) == (1, 0)
    assert fused.spec.num_heads == sum(backbone.spec.num_heads for backbone in fused.members)


def test_what_the_spec_says_of_each() -> None:
    pair, strided = FUSED["same stride"].spec, FUSED["two strides"].spec
    assert (pair.dim, pair.stride, pair.has_cls, pair.has_norm) == (40, 8, False, False)
    assert (strided.dim, strided.stride, strided.has_cls, strided.has_norm) == (24, 8, True, True)
    other = FusedBackbone([replace(part, layer=0) for part in same_stride()], name="pair").spec
    assert other == replace(pair, settings=other.settings)
    assert other.settings != pair.settings


def test_the_features_are_the_members_side_by_side() -> None:
    """Written out, bit for bit: the same grids, so nothing is resampled."""
    fused = FUSED["same stride"]
    dino, siglip = fused.members
    x = images(2, 6, 40, 56)
    features = fused(x)
    parts = [dino.forward_layers(x[:, :3], [1], norm=False)[0], siglip.forward_layers(x[:, 3:], [1], norm=False)[0]]
    assert torch.equal(features.patches, torch.cat([part.patches for part in parts], dim=1))
    assert features.cls is None
    assert torch.equal(features.pooled, features.patches.mean(dim=(2, 3)))


def test_cls_tokens_are_concatenated_where_every_member_has_one() -> None:
    fused = FUSED["two strides"]
    x = images(2, 6, 32, 48)
    parts = [
        fused.members[0].forward_layers(x[:, :3], [-1])[0],
        fused.members[1].forward_layers(x[:, 3:], [1])[0],
    ]
    features = fused(x)
    assert torch.equal(features.cls, torch.cat([part.cls for part in parts], dim=1))
    assert torch.equal(features.pooled, features.cls)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 24), (17, 50)])
def test_both_forms_of_input_agree(fused: FusedBackbone, height: int, width: int) -> None:
    rgb = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    own = [TVF.normalize(rgb, part.mean, part.std) for part in fused.preprocess.parts]
    with torch.inference_mode():
        short, whole = fused(own[0]), fused(torch.cat(own, dim=1))
    assert relative_error(short.patches, whole.patches) < 1e-5


def test_layers_come_as_often_as_asked(fused: FusedBackbone) -> None:
    x = images(1, 3, 32, 32)
    got = fused.forward_layers(x, [0, -1, 0], norm=fused.spec.has_norm)
    assert len(got) == 3
    assert all(torch.equal(features.patches, fused(x).patches) for features in got)
    for layers in ([1], [-2], []):
        with pytest.raises(ValueError, match="want block indices from -1 to 0"):
            fused.forward_layers(x, layers, norm=False)


def test_the_norm_is_the_members() -> None:
    strided, x = FUSED["two strides"], images(1, 6, 32, 32)
    fine = two_strides()[1].backbone
    (raw,) = strided.forward_layers(x, [0], norm=False)
    assert torch.equal(raw.patches[:, 8:], fine.forward_layers(x[:, 3:], [1], norm=False)[0].patches)
    assert not torch.allclose(raw.patches, strided(x).patches)

    mixed = FusedBackbone([Member(fine, -1, False), Member(fine, -1, True)])
    assert not mixed.spec.has_norm
    twice = torch.cat([fine.forward_layers(x[:, :3], [-1], norm=norm)[0].patches for norm in (False, True)], dim=1)
    assert torch.equal(mixed(x[:, :3]).patches, twice)
    assert torch.equal(mixed.forward_layers(x[:, :3], [0], norm=False)[0].patches, twice)
    for fused in (mixed, FUSED["same stride"]):
        with pytest.raises(ValueError, match="has no final norm to apply; pass norm=False"):
            fused.forward_layers(x, [0])


def test_no_block_after_a_members_layer_runs() -> None:
    fused = FusedBackbone([*same_stride(), *two_strides()])
    ran: list[tuple[int, int]] = []
    for i, backbone in enumerate(fused.members):
        for j, block in enumerate(backbone.blocks):
            block.register_forward_hook(lambda *_, at=(i, j): ran.append(at))
    fused(images(1, 12, 32, 32))
    assert ran == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1)]


def test_batch_size_does_not_change_the_features(fused: FusedBackbone) -> None:
    x = images(4, channels(fused), 40, 27)
    with torch.inference_mode():
        alone = torch.cat([fused(image[None]).patches for image in x])
        assert relative_error(fused(x).patches, alone) < 1e-5


def test_mixed_sizes_equal_each_image_alone(fused: FusedBackbone) -> None:
    n = channels(fused)
    batch = [images(n, 32, 32), images(n, 17, 70, seed=1), images(3, 50, 9, seed=2)]
    with torch.inference_mode():
        mixed = fused(batch)
        for i, image in enumerate(batch):
            one = fused(image[None])
            h, w = one.grid
            assert relative_error(mixed.patches[i, :, :h, :w], one.patches[0]) < 1e-5
            assert relative_error(mixed.pooled[i], one.pooled[0]) < 1e-5
            assert mixed.valid[i].sum() == h * w
            assert not mixed.patches[i][:, ~mixed.valid[i]].any()
    assert mixed.geometry.sizes == ((32, 32), (17, 70), (50, 9))
    assert mixed.grid == mixed.patches.shape[-2:]


def test_gradients_reach_the_image_and_every_parameter_that_was_used(fused: FusedBackbone) -> None:
    x = images(1, channels(fused), 40, 40).requires_grad_()
    features = fused(x)
    (features.pooled.square().sum() + features.patches.square().sum()).backward()
    assert (x.grad.abs().sum(dim=(2, 3)) > 0).all()
    for backbone, layer in zip(fused.members, fused.layers, strict=True):
        for j, block in enumerate(backbone.blocks):
            assert all((parameter.grad is not None) == (j <= layer) for parameter in block.parameters())
    fused.zero_grad(set_to_none=True)


def test_runs_in_other_precisions_and_is_a_module_like_any_other(fused: FusedBackbone) -> None:
    x = images(1, 3, 40, 40)
    reference = fused(x).patches
    half = copy.deepcopy(fused).to(torch.bfloat16)(x)
    assert half.patches.dtype == half.registers.dtype == torch.bfloat16
    assert relative_error(half.patches.float(), reference) < 0.1
    assert relative_error(copy.deepcopy(fused).double()(x).patches.float(), reference) < 1e-5
    assert torch.equal(pickle.loads(pickle.dumps(fused))(x).patches, reference)  # noqa: S301  # our own bytes
    assert {name.split(".")[1] for name in fused.state_dict()} == {str(i) for i in range(len(fused.members))}
    other = copy.deepcopy(fused).train()
    assert all(backbone.training for backbone in other.members)
    assert not any(backbone.training for backbone in fused.members)


def test_attention_is_the_members(fused: FusedBackbone) -> None:
    with pytest.raises(ValueError, match=r"no attention of its own; call a member's: members\[i\]\.attention"):
        fused.attention(images(1, 3, 32, 32), [0])
    with pytest.raises(ValueError, match="want block indices"):
        fused.attention(images(1, 3, 32, 32), [1])


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(6, 32, 32),
        torch.zeros(1, 4, 32, 32),
        torch.zeros(1, 9, 32, 32),
        torch.zeros(0, 6, 32, 32),
        torch.zeros(1, 6, 32, 32, dtype=torch.uint8),
        [torch.zeros(1, 6, 32, 32)],
        [torch.zeros(6, 32, 32), torch.zeros(4, 32, 32)],
        [],
    ],
    ids=["no batch", "4 channels", "9 channels", "empty", "uint8", "4-D in list", "4 channels in list", "empty list"],
)
def test_bad_images_are_refused_with_what_is_wanted(bad: object) -> None:
    pair = FUSED["same stride"]
    for call in (pair, lambda x: pair.forward_layers(x, [0], norm=False), lambda x: pair.attention(x, [0])):
        with pytest.raises(
            ValueError, match=r"want a float tensor \(B, 3 or 6, H, W\).* or a list of \(3 or 6, H, W\)"
        ):
            call(bad)


def test_members_that_do_not_go_together_are_refused() -> None:
    good, no_norm = same_stride()[0], tiny_vit(final_norm=False)
    with pytest.raises(ValueError, match="no members"):
        FusedBackbone([])
    with pytest.raises(ValueError, match="tiny has no layer 3; want one from -3 to 2"):
        FusedBackbone([good, replace(good, layer=3)])
    with pytest.raises(ValueError, match="tiny has no final norm for layer -1"):
        FusedBackbone([good, Member(no_norm, -1, True)])
    with pytest.raises(ValueError, match="preprocess has 3 parts for 2 members; want one part a member"):
        FusedBackbone([good, good], FusedPreprocess((FIRST, SECOND, FIRST)))


def test_what_no_type_check_would_let_pass_is_refused_too() -> None:
    """In a process of its own, without the type checks of the tests, which would come first."""
    code = (
        "from vitbackbone import Preprocess, ViT, vit_config\n"
        "from vitbackbone.networks.fused import FusedBackbone, FusedPreprocess, Member\n"
        "vit = ViT(vit_config('Ti/16', depth=1)); fused = FusedBackbone([Member(vit, 0, False)])\n"
        "for make, text in ((lambda: FusedBackbone([Member('nano', 0, False)]), 'a member is a str'),\n"
        "                   (lambda: FusedBackbone([Member(fused, 0, False)]), 'want at least one Preprocess'),\n"
        "                   (lambda: FusedPreprocess(()), 'at least one'),\n"
        "                   (lambda: FusedPreprocess((Preprocess(),), strategy='resize-crop'), 'want one of')):\n"
        "    try: make()\n"
        "    except ValueError as e: assert text in str(e), e\n"
        "    else: raise SystemExit(f'nothing said {text}')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- alignment ----------------------------------------------------------------------------------------------------


class Means(nn.Module):
    """The mean colour of each patch, at several strides: what a feature pyramid says where it lies. Layer i has i extra
    channels. Not a ViT, but a `Backbone`."""

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
    """At the centre of every patch whose neighbours in the coarse map are whole, both members say where it lies."""
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


# ---- preprocessing ------------------------------------------------------------------------------------------------


def openvla_pixels(height: int, width: int, side: int, strategy: str) -> Tensor:
    """`pixel_values` of FIRST and SECOND, written out as OpenVLA's processor has them (crop_pct is 1), but the border
    of a letterbox, which is each member's own as in its training code."""
    pictures = []
    for part in (FIRST, SECOND):
        image = photo(height, width)
        if strategy == "letterbox":
            longer = max(height, width)
            horizontal, vertical = int((longer - width) / 2), int((longer - height) / 2)
            fill = tuple(int(x * 255) for x in part.mean)
            image = TVF.pad(image, (horizontal, vertical, horizontal, vertical), fill=fill, padding_mode="constant")
        size = (side, side) if strategy == "resize-naive" else side
        image = TVF.resize(image, size, interpolation=TVF.InterpolationMode(part.interpolation), antialias=True)
        image = TVF.center_crop(image, (side, side))
        pictures.append(TVF.normalize(TVF.to_tensor(image), part.mean, part.std))
    return torch.vstack(pictures)


@pytest.mark.parametrize("strategy", ["resize-naive", "letterbox", "crop"])
@pytest.mark.parametrize(("height", "width"), [(68, 121), (121, 68), (160, 160), (31, 20), (480, 641)])
def test_pixels_equal_openvlas(strategy: str, height: int, width: int) -> None:
    preprocess = FusedPreprocess((FIRST, SECOND), (48, 48), strategy)
    assert torch.equal(preprocess(photo(height, width)), openvla_pixels(height, width, 48, strategy))
    assert torch.equal(preprocess(photo(height, width), 56), openvla_pixels(height, width, 56, strategy))


@pytest.mark.parametrize("strategy", ["resize-naive", "letterbox", "crop"])
@pytest.mark.parametrize("keep_aspect", [False, True])
@pytest.mark.parametrize("resolution", [None, 40, (40, 64)])
def test_all_members_have_the_view(strategy: str, keep_aspect: bool, resolution: int | tuple[int, int] | None) -> None:
    # 48 of 71 columns: half of the rest is 11.5, which the two roundings take for 12 and 11
    down = replace(SECOND, crop_rounding="down", crop_mode="squash", image_size=(20, 20))
    preprocess = FusedPreprocess((FIRST, down), (48, 48), strategy)
    view = preprocess.view((70, 104), resolution, keep_aspect)
    got = preprocess(photo(70, 104), resolution, keep_aspect)
    assert got.shape == (6, *view.size)
    alone = FusedPreprocess((down,), (48, 48), strategy)
    assert alone.view((70, 104), resolution, keep_aspect) == view
    assert torch.equal(alone(photo(70, 104), resolution, keep_aspect), got[3:])
    if keep_aspect:
        assert view == View((70, 104), view.size, (0, 0), view.size)
    elif strategy == "resize-naive":
        assert view.resized == view.size
    elif resolution != (40, 64):
        assert (view.pad == (17, 0)) == (strategy == "letterbox")


def test_by_default_each_member_has_its_own_and_the_size_is_the_firsts() -> None:
    fused = FusedBackbone(same_stride())
    assert fused.preprocess == FusedPreprocess((FIRST, SECOND), (32, 32), "resize-naive")
    assert fused.spec.image_size == (32, 32)


# ---- what takes a backbone ----------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for i, (height, width) in enumerate([(40, 52), (52, 40), (33, 33)]):
        save_photo(folder / f"{i}.png", height, width, seed=i)
    return folder


@pytest.mark.parametrize("name", ["same stride", "two strides"])
@pytest.mark.parametrize("keep_aspect", [False, True])
def test_extraction_stores_what_the_backbone_says(name: str, keep_aspect: bool, photos: Path, tmp_path: Path) -> None:
    fused = FUSED[name]
    kinds = ["cls", "patches"] if fused.spec.has_cls else ["patches"]
    store = extract(fused, photos, tmp_path / "f", tokens=kinds, batch_size=2, keep_aspect=keep_aspect, progress=False)
    for i in range(3):
        with torch.inference_mode():
            alone = fused(fused.preprocess(photos / f"{i}.png", keep_aspect=keep_aspect)[None])
        assert relative_error(torch.from_numpy(np.array(store.patches(i))), alone.patches[0]) < 1e-5
        if fused.spec.has_cls:
            assert relative_error(torch.from_numpy(np.array(store.cls[i])), alone.cls[0]) < 1e-5
    assert store.manifest["preprocessing"]["strategy"] == "resize-naive"
    assert [part["mean"] for part in store.manifest["preprocessing"]["parts"]] == [list(FIRST.mean), list(SECOND.mean)]

    again = copy.deepcopy(fused)
    extract(again, photos, tmp_path / "f", tokens=kinds, keep_aspect=keep_aspect, progress=False)
    again.preprocess = replace(again.preprocess, strategy="crop")
    with pytest.raises(ValueError, match=r"preprocessing\.strategy: the store has 'resize-naive', asked is 'crop'"):
        extract(again, photos, tmp_path / "f", tokens=kinds, keep_aspect=keep_aspect, progress=False)


def test_extraction_of_tokens_that_are_not_there_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pair has no CLS token; ask for tokens="):
        extract(FUSED["same stride"], photos, tmp_path / "f")
    with pytest.raises(ValueError, match="pair has no register tokens"):
        extract(FUSED["two strides"], photos, tmp_path / "f", tokens=["registers"])


@pytest.mark.parametrize(("height", "width"), [(1, 12_000), (12_000, 1)])
def test_a_photo_whose_letterbox_would_be_huge_is_a_row_with_its_reason(
    height: int, width: int, tmp_path: Path
) -> None:
    path = save_photo(tmp_path / "thin.png", height, width)
    reader = ImageReader(FusedPreprocess((FIRST, SECOND), (32, 32), "letterbox"), None, False, "exact")
    record, pixels = reader[Locator(str(path)), hashlib.sha256(path.read_bytes()).digest()]
    assert pixels is None
    assert record.reason == "too thin"
    assert record.error.startswith(f"too long and thin: {width} x {height} pixels become 1")


@pytest.mark.parametrize("name", ["same stride", "two strides"])
def test_the_scikit_learn_transformer_takes_it(name: str, photos: Path) -> None:
    fused = FUSED[name]
    got = ImageFeatures(fused, pooling="mean", batch_size=2).transform([photos / "0.png", photos / "1.png"])
    with torch.inference_mode():
        alone = fused(torch.stack([fused.preprocess(photos / f"{i}.png") for i in range(2)]))
    assert relative_error(torch.from_numpy(got), alone.patches.mean(dim=(2, 3))) < 1e-5


def test_pictures_are_refused_with_what_to_do(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pair is several backbones, and each has its own attention; show one of them"):
        show(FUSED["same stride"], photos / "0.png", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line_tells_it_from_another_backbone(photos: Path) -> None:
    def manifest(backbone: Any) -> dict[str, Any]:
        settings = {"tokens": ["patches"], "layers": [0], "shard_size": 9, "resolution": None, "keep_aspect": False}
        settings |= {"decoding": "exact", "dtype": "float32", "runtime": backbone.runtime, "calibration": None}
        return make_manifest(backbone, weights_sha256(backbone), **settings)

    pair, vit = FUSED["same stride"], tiny_vit()
    check_same_backbone(pair, manifest(pair))
    with pytest.raises(ValueError, match="another backbone than this pair: weights, settings, crop_pct, crop_mode"):
        check_same_backbone(vit, manifest(pair))
    with pytest.raises(ValueError, match="another backbone than this tiny: weights, settings, parts, strategy differ"):
        check_same_backbone(pair, manifest(vit))
    other = copy.deepcopy(pair)
    other.preprocess = replace(pair.preprocess, parts=(FIRST, FIRST))
    with pytest.raises(ValueError, match="another backbone than this pair: parts differ"):
        check_same_backbone(other, manifest(pair))
    assert json.loads(json.dumps(asdict(pair.preprocess)))["image_size"] == [32, 32]


# ---- OpenVLA ------------------------------------------------------------------------------------------------------

DINO, SIGLIP = "vit_small_patch14_reg4_dinov2", "vit_so400m_patch14_siglip_224"


def openvla_keys(dino: nn.Module, siglip: nn.Module) -> dict[str, Tensor]:
    """A state dict as OpenVLA saves it, with something of its other parts."""
    state = {"language_model.model.embed_tokens.weight": torch.zeros(1), "projector.fc1.weight": torch.zeros(1)}
    for prefix, model in (("featurizer", dino), ("fused_featurizer", siglip)):
        for key, value in model.state_dict().items():
            name = key.removesuffix("gamma") + "scale_factor" if key.endswith((".ls1.gamma", ".ls2.gamma")) else key
            state[f"vision_backbone.{prefix}.{name}"] = value
    return state


@pytest.fixture(scope="module")
def dino() -> nn.Module:
    return randomise(timm.create_model(DINO, img_size=28, depth=2, num_classes=0))


@pytest.fixture(scope="module")
def siglip() -> nn.Module:
    model = timm.create_model(SIGLIP, img_size=28, depth=2, embed_dim=32, num_heads=2, num_classes=0)
    return randomise(model, seed=1)


def test_openvlas_state_dict_is_two_of_timm(dino: nn.Module, siglip: nn.Module) -> None:
    state = openvla_keys(dino, siglip)
    assert "vision_backbone.featurizer.blocks.1.ls2.scale_factor" in state
    for got, model in zip(split_openvla(state), (dino, siglip), strict=True):
        expected = model.state_dict()
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[key], value) for key, value in expected.items())


def test_keys_that_are_no_part_of_openvla_are_all_named(dino: nn.Module, siglip: nn.Module) -> None:
    state = openvla_keys(dino, siglip)
    strange = {"vision_backbone.other.weight": torch.zeros(1), "featurizer.norm.weight": torch.zeros(1)}
    with pytest.raises(ConversionError) as error:
        split_openvla(state | strange)
    assert str(error.value).splitlines()[1:] == [f"  {key}: no part of OpenVLA" for key in sorted(strange)]
    single = {key: value for key, value in state.items() if "fused_featurizer" not in key}
    with pytest.raises(ConversionError, match=r"vision_backbone\.fused_featurizer\.\*: missing"):
        split_openvla(single)


def test_the_dino_half_at_224_equals_timms_second_to_last_layer() -> None:
    """As OpenVLA calls it: `get_intermediate_layers(n={L - 2})`. timm resamples the positions of 518 px at load, we at
    run time. The second member has the same architecture until SigLIP is a ViT of ours."""
    big = [randomise(timm.create_model(DINO, num_classes=0), seed).state_dict() for seed in (0, 1)]
    theirs, ours = [], []
    for state in big:
        model = timm.create_model(DINO, img_size=224, num_classes=0)
        model.load_state_dict(checkpoint_filter_fn(dict(state), model))
        theirs.append(model.eval())
        entry = ZOO[f"{DINO}.lvd142m"]
        vit = ViT(entry.config, entry.preprocess, DINO).eval()
        vit.load_state_dict(convert(state, FORMATS[entry.format], vit.state_dict()))
        ours.append(vit)
    config = FusedConfig(((DINO, -2, False), (DINO, -2, False)), (224, 224))
    fused = fuse(config, ours, "openvla").eval()
    assert fused.spec.dim == 768
    pixels = fused.preprocess(photo(300, 400))[None]
    assert pixels.shape == (1, 6, 224, 224)
    with torch.inference_mode():
        expected = torch.cat(
            [
                model.get_intermediate_layers(picture, n={len(model.blocks) - 2})[0]
                for model, picture in zip(theirs, pixels.split(3, dim=1), strict=True)
            ],
            dim=2,
        )
        features = fused(pixels)
    assert expected.shape == (1, 256, 768)
    assert features.patches.shape == (1, 768, 16, 16)
    assert relative_error(features.tokens, expected) < 1e-5
