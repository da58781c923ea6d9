"""`optimize`: what it returns, how close it must be, and which route it takes."""

import copy
import logging
import pickle
import re
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.backbones import BACKBONES, VITS, images
from tests.helpers import relative_error
from tests.runtime.outputs import BF16, FP32, MIXED, furthest, outputs, packed_fp32
from vitbackbone import BackboneModule, Features, fingerprint
from vitbackbone.contract.fingerprint import weights_sha256
from vitbackbone.contract.spec import Fidelity
from vitbackbone.runtime import choice, kernels, routes
from vitbackbone.runtime.choice import optimize
from vitbackbone.runtime.fidelity import compare
from vitbackbone.runtime.routes import Route


def only(monkeypatch: pytest.MonkeyPatch, *rows: Route) -> None:
    """Allow only these routes, the last of them the fastest."""
    monkeypatch.setattr(choice, "ROUTES", rows)
    monkeypatch.setattr(choice, "_race", lambda built, images: (list(built)[-1], ["as fast as a test wants"]))


PLAIN = Route("torch", "fp32", "native", "cpu", routes.plain)
HALF = Route("torch's bfloat16", "bf16", "native", "cpu", partial(routes.unpacked, dtype=BF16))


@pytest.mark.parametrize("name", ["registers", "swin sized", "fused"])
def test_the_original_is_left_as_it_was(name: str) -> None:
    backbone = copy.deepcopy(BACKBONES[name])
    learns = {name: p.requires_grad for name, p in backbone.named_parameters()}
    before, modules = outputs(backbone.eval(), MIXED), list(backbone.modules())
    backbone.train()
    fast = optimize(backbone)
    assert fast is not backbone
    assert not fast.training
    assert all(module.training for module in backbone.modules())
    assert list(backbone.modules()) == modules
    assert not set(modules) & set(fast.modules())
    assert {name: p.requires_grad for name, p in backbone.named_parameters()} == learns
    assert all(torch.equal(a, b) for a, b in zip(outputs(backbone.eval(), MIXED), before, strict=True))
    assert backbone.fidelity is None


def test_it_has_the_same_weights_in_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, PLAIN, HALF)
    vit = VITS["rotary halves"]
    fast = optimize(vit, "bf16", floor=0.9)
    assert (fast.runtime.precision, fast.runtime.engine) == ("bf16", "native")
    assert fast.spec == vit.spec
    assert fast.preprocess == vit.preprocess
    assert weights_sha256(fast) == weights_sha256(vit)
    assert fingerprint(fast) == fingerprint(vit)
    theirs = {name: p.data_ptr() for name, p in vit.named_parameters()}
    assert {name: p.data_ptr() for name, p in fast.named_parameters()} == theirs


def test_it_is_for_inference_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, PLAIN, HALF)
    vit = copy.deepcopy(VITS["cls"])
    fast = optimize(vit, "bf16", floor=0.9)
    assert not fast.train().training
    assert not any(p.requires_grad for p in fast.parameters())
    assert not fast(images(1, 3, 32, 32)).patches.requires_grad
    with pytest.raises(ValueError, match="no gradients"):
        fast(images(1, 3, 32, 32).requires_grad_())
    with pytest.raises(TypeError, match="copy the plain one"):
        pickle.dumps(fast)
    with pytest.raises(TypeError, match="copy the plain one"):
        copy.deepcopy(fast)
    assert fast.to("cpu") is fast
    with torch.no_grad():
        vit.blocks[1].mlp.fc2.weight[0, 0] += 1
    with pytest.raises(ValueError, match="optimise it again"):
        fast(images(1, 3, 32, 32))
    with pytest.raises(ValueError, match="stays torch.float32 on cpu, not torch.float16"):
        fast.half()


def test_the_forward_that_follows_needs_no_inference_mode() -> None:
    """A backbone that was optimised under it works without it, and the other way round."""
    with torch.inference_mode():
        fast = optimize(VITS["cls"])
        within = fast(images(1, 3, 32, 32)).patches
    assert torch.equal(fast(images(1, 3, 32, 32)).patches, within)


def test_fidelity_is_cosines_and_errors() -> None:
    vit = VITS["cls"]
    with torch.inference_mode():
        want = vit(MIXED)
        got = vit([image + 0.1 * images(*image.shape, seed=7) for image in MIXED])
    found = compare(got, want)
    angles = [
        [
            F.cosine_similarity(a, b, dim=0)
            for a, b in zip(x.patches.flatten(2)[0].T, y.patches.flatten(2)[0].T, strict=True)
        ]
        for x, y in ((got.image(i), want.image(i)) for i in range(3))
    ]
    assert found.patches_cosine == pytest.approx(min(sum(each) / len(each) for each in angles).item(), abs=1e-6)
    cls = [F.cosine_similarity(a, b, dim=0).item() for a, b in zip(got.cls, want.cls, strict=True)]
    assert found.cls_cosine == pytest.approx(min(cls), abs=1e-6)
    assert found.cls_error == pytest.approx(relative_error(got.cls, want.cls))
    assert found.patches_error == pytest.approx(relative_error(got.patches, want.patches))
    assert found.cosine == min(found.cls_cosine, found.patches_cosine)
    assert compare(want, want) == Fidelity(1.0, 1.0, 0.0, 0.0)


def test_a_precision_that_is_too_far_off_is_refused_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, PLAIN, HALF)
    vit = VITS["cls"]
    with pytest.raises(ValueError, match=r"tiny: cosine 0\.99\d+, want at least 0\.9999999\. Take a higher .* `floor`"):
        optimize(vit, "bf16", sample=MIXED, floor=0.9999999)
    fast = optimize(vit, "bf16", sample=MIXED, floor=0.99)
    with torch.inference_mode():
        assert fast.fidelity == compare(fast(MIXED), vit(MIXED))
    assert fast.runtime.precision == "bf16"


def test_a_higher_precision_does_where_the_one_asked_brings_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    only(monkeypatch, HALF, PLAIN)
    with caplog.at_level(logging.INFO, "vitbackbone"):
        fast = optimize(VITS["cls"], "bf16", floor=0.9)
    assert (fast.runtime.precision, fast.runtime.engine) == ("fp32", "native")
    assert "tiny, at least bf16: fp32 by torch, as fast as a test wants; cosine to float32 1.0000000" in caplog.text


def test_features_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(backbone: BackboneModule, images: object) -> BackboneModule:
        fast = routes.share(backbone)
        fast.register_forward_hook(
            lambda _, given, features: Features(
                features.cls * torch.nan, features.registers, features.patches, features.geometry
            )
        )
        return fast

    only(monkeypatch, Route("a broken one", "int8", "native", "cpu", broken))
    with pytest.raises(ValueError, match="cosine 0.0000000, want at least 0.999"):
        optimize(VITS["cls"], "int8")


@pytest.mark.parametrize(("seconds", "taken"), [((1.0, 0.5), "second"), ((1.0, 0.99), "first"), ((0.5, 1.0), "first")])
def test_the_faster_path_is_taken_and_the_plainer_where_none_is(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], taken: str
) -> None:
    clock = [0.0]

    def timed(backbone: BackboneModule, images: object, seconds: float) -> BackboneModule:
        fast = routes.share(backbone)
        fast.register_forward_pre_hook(lambda *_: clock.append(clock.pop() + seconds))
        return fast

    names = ("first", "second")
    both = [Route(n, "fp32", "native", "cpu", partial(timed, seconds=s)) for n, s in zip(names, seconds, strict=True)]
    monkeypatch.setattr(choice, "ROUTES", both)
    monkeypatch.setattr(choice.time, "perf_counter", lambda: clock[0])
    built, _ = choice._build_all(both, VITS["cls"], MIXED, choice.FLOORS)
    assert choice._race(built, MIXED)[0].name == taken
    assert len(optimize(VITS["cls"], sample=MIXED)._forward_pre_hooks) == 1


def test_a_path_far_behind_runs_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "ROUNDS", 5)
    clock, ran = [0.0], {0.1: 0, 0.11: 0, 1.0: 0}

    def timed(seconds: float) -> BackboneModule:
        def tick(*_: object) -> None:
            clock[0] += seconds
            ran[seconds] += 1

        fast = routes.share(VITS["cls"])
        fast.register_forward_pre_hook(tick)
        return fast

    monkeypatch.setattr(choice.time, "perf_counter", lambda: clock[0])
    built = {Route(str(s), "fp32", "native", "cpu", routes.plain): timed(s) for s in (1.0, 0.11, 0.1)}
    best, told = choice._race(built, MIXED)
    assert best.name == "0.1"
    assert ran == {0.1: 5, 0.11: 5, 1.0: 1}
    assert told == ["10.00 times as fast as fp32 by 1.0", "1.10 times as fast as fp32 by 0.11"]


def test_an_engine_that_is_asked_for_is_taken_or_the_reason_given() -> None:
    with pytest.raises(ValueError, match="engine='openvino' cannot run .*: a TimmBackbone .* Use engine"):
        optimize(BACKBONES["resnet"], engine="openvino")
    pytest.importorskip("openvino")
    fast = optimize(VITS["cls"], engine="openvino", sample=MIXED)
    assert (fast.runtime.precision, fast.runtime.engine) == ("fp32", "openvino")
    assert fast.fidelity.cosine > 1 - 1e-9
    assert furthest(outputs(fast, MIXED), outputs(VITS["cls"], MIXED)) < 1e-5
    with pytest.raises(ValueError, match="optimised already"):
        optimize(fast)


def raising(*_: object) -> Tensor:
    raise NotImplementedError("no such kernel")


def wrong(x: Tensor, packed: Tensor, bias: Tensor, *_: object) -> Tensor:
    return torch.zeros(*x.shape[:-1], len(bias))


@pytest.mark.parametrize(("kernel", "reason"), [(raising, "no such kernel"), (wrong, r"are off by 1.0e\+00 here")])
def test_private_operations_that_are_gone_or_wrong_are_not_used(
    kernel: object, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", kernel)
    assert kernels.trouble(FP32)
    with caplog.at_level(logging.INFO, "vitbackbone"):
        fast = optimize(VITS["cls"], engine="native")
    (record,) = caplog.records
    assert "fp32 by torch as it is, the only route" in record.getMessage()
    assert re.search(f"not fp32 by oneDNN's packed linears: .*{reason}", record.getMessage())
    assert furthest(outputs(fast, MIXED), outputs(VITS["cls"], MIXED)) == 0


def test_operations_that_torch_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
    assert "no packed torch.float32 linears" in kernels.trouble(FP32)


@packed_fp32
def test_the_sample_is_of_any_sizes_and_its_first_four_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        choice, "compare", lambda got, want: seen.append(len(got.patches)) or Fidelity(1.0, 1.0, 0.0, 0.0)
    )
    optimize(VITS["cls"], sample=MIXED * 3)
    optimize(VITS["cls"], sample=images(9, 3, 24, 24))
    assert set(seen) == {4}


def test_what_cannot_be_optimised_is_said() -> None:
    vit = VITS["cls"]
    with pytest.raises(ValueError, match="tiny is optimised already"):
        optimize(optimize(vit))
    with pytest.raises(ValueError, match="tiny is in torch.bfloat16 on cpu; want float32"):
        optimize(copy.deepcopy(vit).bfloat16())
    with pytest.raises(ValueError, match="images has shape"):
        optimize(vit, sample=images(3, 32, 32))


def test_what_no_type_check_would_let_pass_is_refused_too() -> None:
    code = (
        "from vitbackbone import load_backbone\n"
        "from vitbackbone.runtime import optimize\n"
        "nano = load_backbone('nano')\n"
        "for given in ({'precision': 'fp8'}, {'engine': 'tpu'}, {'backbone': nano.norm}):\n"
        "    try:\n"
        "        optimize(**{'backbone': nano, **given})\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()
    assert said == [
        "precision='fp8'; want one of fp32, bf16, int8",
        "engine='tpu'; want one of auto, native, openvino",
        "backbone is a LayerNorm; want one that load_backbone returns",
    ]
