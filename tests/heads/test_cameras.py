"""Several cameras as one sequence of tokens: sizes, time, missing cameras, shared parts, features that are kept."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heads import CameraEncoder, Head, Needs, attach, create_head, freeze
from tests.helpers import randomise, relative_error, tiny_vit
from vitbackbone import BackboneModule, BackboneSpec, Features

SIZES = {"observation.images.front": (32, 48), "wrist": (16, 24), "side": (30, 21)}
FRONT, WRIST, SIDE = SIZES
COUNTS = {FRONT: 24, WRIST: 6, SIDE: 12}  # patches of 8 x 8
LIMIT = 1e-5


def images(lead: tuple[int, ...] = (3,), seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*lead, 3, *size, generator=generator) for name, size in SIZES.items()}


def encoder(head: str = "token_projector", missing: str = "mask", **options: object) -> CameraEncoder:
    vit = tiny_vit()
    options = options or {"width": 10}
    return CameraEncoder(SIZES, vit, randomise(create_head(head, vit.spec, **options)), missing=missing).eval()


def runs(backbone: BackboneModule) -> list[int]:
    """The number of images of each forward of a backbone from now on."""
    counts: list[int] = []
    backbone.blocks[0].register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    return counts


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def test_each_camera_is_seen_at_its_own_size() -> None:
    whole, x = encoder(), images()
    out = whole(x)
    assert out.tokens.shape == (3, sum(COUNTS.values()), 10)
    assert out.mask.all()
    assert out.mask.shape == out.tokens.shape[:2]
    for name in SIZES:
        alone = attach(whole.backbone(name), {"head": whole.head(name)})(x[name])["head"]
        assert alone.shape[1] == COUNTS[name]
        assert relative_error(out.camera(name), alone) < LIMIT


def test_batch_and_time_are_kept() -> None:
    whole, x = encoder(), images((2, 4))
    out = whole(x)
    assert out.tokens.shape == (2, 4, 42, 10)
    assert out.mask.shape == (2, 4, 42)
    for b, t in [(0, 3), (1, 0)]:
        alone = whole({name: pixels[b, t][None] for name, pixels in x.items()})
        assert relative_error(out.tokens[b, t], alone.tokens[0]) < LIMIT


def test_a_head_of_one_vector_gives_one_token() -> None:
    out = encoder("map_pool", num_heads=2)(images())
    assert out.tokens.shape == (3, 3, 16)
    assert out.slices == {FRONT: slice(0, 1), WRIST: slice(1, 2), SIDE: slice(2, 3)}


@pytest.mark.parametrize("how", ["none", "absent"])
def test_a_missing_camera_is_masked_and_costs_nothing(how: str) -> None:
    whole, x = encoder(), images()
    full, counts = whole(x), runs(whole.backbone(WRIST))
    x[WRIST] = None
    if how == "absent":
        del x[WRIST]
    out = whole(x)
    assert counts == [3, 3]
    assert not out.mask[:, out.slices[WRIST]].any()
    assert out.mask.sum() == 3 * (COUNTS[FRONT] + COUNTS[SIDE])
    assert (out.camera(WRIST) == 0).all()
    for name in (FRONT, SIDE):
        assert torch.equal(out.camera(name), full.camera(name))


@pytest.mark.parametrize("lead", [(3,), (3, 2)], ids=str)
def test_a_camera_may_be_missing_from_some_samples(lead: tuple[int, ...]) -> None:
    """The values in place of a missing image, such as NaN, have no influence."""
    whole, x = encoder(), images(lead)
    full, counts = whole(x), runs(whole.backbone(SIDE))
    present = torch.ones(lead, dtype=torch.bool)
    present[1] = False
    x[SIDE][1] = float("nan")
    out = whole(x, {SIDE: present})
    assert counts == [present.numel(), present.numel(), int(present.sum())]
    assert torch.equal(out.mask[..., out.slices[SIDE]].any(-1), present)
    assert (out.camera(SIDE)[1] == 0).all()
    assert relative_error(out.camera(SIDE)[present], full.camera(SIDE)[present]) < LIMIT
    assert torch.equal(out.camera(FRONT), full.camera(FRONT))


def test_backbones_and_heads_are_shared_or_separate() -> None:
    shared = encoder()
    assert len({id(shared.backbone(name)) for name in SIZES}) == len({id(shared.head(name)) for name in SIZES}) == 1
    vits = {FRONT: tiny_vit(), WRIST: tiny_vit(seed=1, patch_size=4), SIDE: tiny_vit(seed=2, dim=24)}
    heads = {name: create_head("token_projector", vit.spec, width=10) for name, vit in vits.items()}
    separate = CameraEncoder(SIZES, vits, heads)
    out = separate(images())
    assert out.tokens.shape == (3, 24 + 4 * 6 + 12, 10)
    for name in SIZES:
        assert separate.backbone(name) is vits[name]
        alone = attach(vits[name], {"head": heads[name]})(images()[name])["head"]
        assert relative_error(out.camera(name), alone) < LIMIT
    assert len(list(shared.state_dict())) * 3 == len(list(separate.state_dict()))  # what is shared is in the file once


def test_heads_that_read_several_layers() -> None:
    vit = tiny_vit()
    head = randomise(create_head("concat", vit.spec, num_classes=7, layers="last"))
    out = CameraEncoder(SIZES, vit, head)(images())
    assert relative_error(out.camera(SIDE)[:, 0], attach(vit, {"h": head})(images()[SIDE])["h"]) < LIMIT


def test_a_sample_without_any_camera_is_all_masked() -> None:
    whole, x = encoder(), images((2,))
    kept = whole.features(x, {name: torch.tensor([True, False]) for name in SIZES})
    out = whole.tokens(kept[1:])
    assert out.tokens.shape == (1, 42, 10)
    assert not out.tokens.any()
    assert not out.mask.any()


# ---- what is kept --------------------------------------------------------------------------------------------------


def test_features_of_a_frozen_backbone_are_computed_once() -> None:
    vit = freeze(tiny_vit())
    whole = CameraEncoder(SIZES, vit, create_head("token_projector", vit.spec, width=10))
    x, counts = images(), runs(vit)
    kept = whole.features(x)
    assert counts == [3, 3, 3]
    optimizer = torch.optim.SGD([p for p in whole.parameters() if p.requires_grad], lr=0.1)
    outputs = []
    with torch.enable_grad():
        for _ in range(4):
            out = whole.tokens(kept)
            optimizer.zero_grad()
            out.tokens.square().mean().backward()
            optimizer.step()
            outputs.append(out.tokens.detach())
    assert counts == [3, 3, 3]
    assert not torch.equal(outputs[0], outputs[-1])
    assert relative_error(whole.tokens(kept).tokens, whole(x).tokens) < LIMIT


@pytest.mark.parametrize("lead", [(4,), (4, 2)], ids=str)
@pytest.mark.parametrize(
    "rows",
    [slice(1, 3), torch.tensor([3, 0, 3]), torch.tensor([True, False, False, True])],
    ids=["slice", "indices", "mask"],
)
def test_rows_of_what_is_kept(rows: slice | Tensor, lead: tuple[int, ...]) -> None:
    whole, x = encoder(), images(lead)
    present = {WRIST: torch.rand(lead, generator=torch.Generator().manual_seed(0)) < 0.5}
    some = whole.tokens(whole.features(x, present)[rows])
    expected = whole(x, present)
    assert relative_error(some.tokens, expected.tokens[rows]) < LIMIT
    assert torch.equal(some.mask, expected.mask[rows])


def test_gradients_reach_a_backbone_that_is_not_frozen() -> None:
    whole = encoder().train()
    with torch.enable_grad():
        whole(images(), {SIDE: torch.tensor([True, False, True])}).tokens.sum().backward()
    assert all(p.grad is not None for name, p in whole.named_parameters() if "cls" not in name)


class Normed(Head):
    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec, Needs("last"))
        self.bn = torch.nn.BatchNorm1d(spec.dim)

    def forward(self, features: Features) -> Tensor:
        return self.bn(features.tokens.mean(dim=1))


def test_making_one_leaves_its_parts_as_they_were() -> None:
    """The head is run once to learn its shape: neither modes nor the statistics of batch norms change."""
    vit = tiny_vit()
    head = Normed(vit.spec).train()
    CameraEncoder(SIZES, vit, head)
    assert head.training
    assert head.bn.training
    assert not vit.training
    assert head.bn.num_batches_tracked == 0


AS_MASK: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "list of tensors": lambda values: list(map(torch.tensor, values)),
    "tensor": torch.tensor,
    "array": np.array,
    "strided array": lambda values: np.repeat(values, 2)[::2],
    "read-only array": lambda values: np.frombuffer(bytes(map(int, values)), dtype=np.uint8),
}


@pytest.mark.parametrize("kind", [bool, int, float, np.uint8, np.float16], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("container", AS_MASK)
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_mask_may_hold_bools_or_zeros_and_ones(container: str, kind: type) -> None:
    whole, x = encoder(), images()
    x[SIDE][1] = float("nan")
    mask = AS_MASK[container]([kind(value) for value in (1, 0, 1)])
    out, want = whole(x, {SIDE: mask}), whole(x, {SIDE: torch.tensor([True, False, True])})
    assert torch.equal(out.mask, want.mask)
    assert out.mask.dtype == torch.bool
    assert torch.equal(out.tokens, want.tokens)


@pytest.mark.parametrize(
    "mask",
    [
        *([0, 1, 2], [-1, 0, 1], [0.5, 1, 1], [float("nan"), 1, 1], ["1", "0", "1"], [None, 1, 1], [[1], [0, 1], [1]]),
        *(None, np.array([1, 0, 255], np.uint8), torch.tensor([1j, 0, 1]), "101", {0: True}),
    ],
    ids=repr,
)
def test_a_mask_of_other_values_is_refused(mask: Any) -> None:
    whole, x = encoder(), images()
    with pytest.raises(ValueError, match=r"present\['side'\] .*; want bools, or 0 and 1, of shape"):
        whole(x, {SIDE: mask})


@pytest.mark.parametrize("mask", [True, [True, False], [[True, True, False]], [[1, 0], [1, 1], [0, 1]]], ids=repr)
def test_a_mask_of_another_shape_is_refused(mask: Any) -> None:
    with pytest.raises(ValueError, match=r"the cameras have different batches, .*present\['side'\]"):
        encoder()(images(), {SIDE: mask})


# ---- wrong use -----------------------------------------------------------------------------------------------------


def test_wrong_images_are_refused() -> None:
    whole, x = encoder(), images()
    with pytest.raises(ValueError, match="unknown cameras: wirst; this encoder has observation.images.front, wrist"):
        whole({**x, "wirst": x[WRIST]})
    with pytest.raises(ValueError, match="unknown cameras: nose"):
        whole(x, {"nose": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"camera 'wrist' have shape \(3, 3, 24, 24\); want \(B, 3, 16, 24\)"):
        whole({**x, WRIST: torch.zeros(3, 3, 24, 24)})
    with pytest.raises(ValueError, match=r"different batches, .*'wrist': \(2,\)"):
        whole({**x, WRIST: x[WRIST][:2]})
    with pytest.raises(ValueError, match="different batches"):
        whole(x, {WRIST: torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ValueError, match="all cameras are missing"):
        whole({FRONT: None})


def test_missing_cameras_are_refused_where_the_caller_says_so() -> None:
    whole, x = encoder(missing="refuse"), images()
    whole(x, {WRIST: torch.ones(3, dtype=torch.bool)})
    match = "cameras are missing: wrist; make the CameraEncoder with missing='mask'"
    with pytest.raises(ValueError, match=match):
        whole({FRONT: x[FRONT], SIDE: x[SIDE]})
    with pytest.raises(ValueError, match=match):
        whole(x, {WRIST: torch.tensor([True, True, False])})


def test_wrong_parts_are_refused() -> None:
    vit = tiny_vit()
    head = create_head("token_projector", vit.spec, width=10)
    with pytest.raises(ValueError, match="no cameras"):
        CameraEncoder({}, vit, head)
    with pytest.raises(ValueError, match="'zeros'; want one of mask, refuse"):
        CameraEncoder(SIZES, vit, head, missing="zeros")
    with pytest.raises(ValueError, match=r"heads for \['wrist'\]; want one for all"):
        CameraEncoder(SIZES, vit, {WRIST: head})
    with pytest.raises(ValueError, match="camera 'side': .*sides divisible by 2"):
        CameraEncoder({SIDE: (40, 24)}, vit, create_head("space_to_depth", vit.spec))
    with pytest.raises(ValueError, match="camera 'wrist': .*made for tiny"):
        CameraEncoder({WRIST: SIZES[WRIST]}, tiny_vit(dim=24), head)
    other = create_head("token_projector", vit.spec, width=12)
    with pytest.raises(ValueError, match="different widths: front 10, wrist 12"):
        CameraEncoder({"front": (32, 32), WRIST: SIZES[WRIST]}, vit, {"front": head, WRIST: other})
    with pytest.raises(ValueError, match="want a head that gives tokens"):
        CameraEncoder(SIZES, vit, create_head("linear", vit.spec, num_classes=3))
