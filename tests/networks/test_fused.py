"""Several backbones as one backbone: the contract, what the members give, and which of them go together."""

import copy
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional as TVF

from tests.helpers import photo, relative_error, tiny_vit
from tests.networks.fused_backbones import FIRST, FUSED, SECOND, images, same_stride, two_strides
from vitbackbone import Backbone, View
from vitbackbone.networks.fused import FusedBackbone, FusedPreprocess, Member


@pytest.fixture(params=FUSED)
def fused(request: pytest.FixtureRequest) -> FusedBackbone:
    return FUSED[request.param]


def channels(fused: FusedBackbone) -> int:
    return 3 * len(fused.members)


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
    with pytest.raises(ValueError, match="preprocess has 3 parts for 2 members; want one for each member"):
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
