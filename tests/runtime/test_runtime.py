"""The fast routes: the contract, closeness to the plain backbone, refusals, and the choice among them."""

import copy
import logging
import pickle
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backbones import BACKBONES, VITS, images
from tests.helpers import relative_error, tiny_vit
from tests.runtime.outliers import with_outliers
from vitbackbone import BackboneModule, Features, ViT, fingerprint
from vitbackbone.contract.fingerprint import weights_sha256
from vitbackbone.contract.spec import Fidelity
from vitbackbone.model.attention import attend
from vitbackbone.model.layers import GatedMlp
from vitbackbone.runtime import choice, linears, routes
from vitbackbone.runtime import int8 as eight_bits
from vitbackbone.runtime.choice import compare, optimize
from vitbackbone.runtime.routes import Route

FP32, BF16 = torch.float32, torch.bfloat16
packed_fp32 = pytest.mark.skipif(bool(linears.trouble(FP32)), reason=linears.trouble(FP32))
packed_bf16 = pytest.mark.skipif(bool(linears.trouble(BF16)), reason=linears.trouble(BF16))

onednn_int8 = pytest.mark.skipif(bool(eight_bits.int8_trouble()), reason=eight_bits.int8_trouble())

MIXED = [images(3, 40, 24), images(3, 16, 33, seed=1), images(3, 40, 24, seed=2)]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "ROUNDS", 1)  # of each path, and no more
    monkeypatch.setattr(choice, "SECONDS", 0.0)


def parts(features: Features) -> list[Tensor]:
    return [x for x in (features.cls, features.registers, features.patches, features.pooled) if x is not None]


def outputs(backbone: BackboneModule, batch: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """All that a backbone says of images."""
    spec = backbone.spec
    with torch.inference_mode():
        found = parts(backbone(batch))
        for features in backbone.forward_layers(batch, range(spec.depth), norm=False):
            found += parts(features)
        if spec.num_prefix:
            for prefix in backbone.forward_prefix(batch, [0, -1], norm=False):
                found += [x for x in (prefix.cls, prefix.registers) if x is not None]
        if isinstance(batch, Tensor) and isinstance(backbone, ViT):
            found += [maps.weights for maps in backbone.attention(batch, [0, -1])]
    return found


def furthest(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return max(relative_error(x, y) for x, y in zip(a, b, strict=True) if x.numel())


# ---- each path ----------------------------------------------------------------------------------------------------


@packed_fp32
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("fuses", [False, True], ids=["", "fused"])
def test_packed_float32_is_the_plain_backbone_to_1e5(name: str, fuses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    capability = "AVX512" if fuses else "AVX2"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    backbone = BACKBONES[name]
    fast = routes.packed(backbone, MIXED)
    assert any(isinstance(module, linears.PackedLinear) for module in fast.modules()) or name in ("resnet",)
    for batch in (images(2, 3, 40, 56), MIXED):
        assert furthest(outputs(fast, batch), outputs(backbone, batch)) < 1e-5


def stand_in(
    x: Tensor, weight: Tensor, bias: Tensor | None, name: str, scalars: list[object], algorithm: str
) -> Tensor:
    """Compute `_linear_pointwise` by torch's own linear layers."""
    y = F.linear(x, weight, bias)
    return F.gelu(y, approximate=algorithm) if name == "gelu" else y


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("build", ["unpacked", "packed", pytest.param("onednn", marks=packed_bf16)])
def test_bfloat16_is_close_and_its_features_are_float32(name: str, build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if build == "packed":  # also where the processor has no such instructions
        monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", Tensor.clone)
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", stand_in)
    backbone = VITS[name]
    fast = (routes.unpacked if build == "unpacked" else routes.packed)(backbone, MIXED, dtype=BF16)
    for batch in (images(2, 3, 40, 56), MIXED):
        with torch.inference_mode():
            got, want = fast(batch), backbone(batch)
        assert all(x.dtype == FP32 for x in parts(got))
        assert 0.999 < compare(got, want).cosine < 1 - 1e-9
    assert furthest(outputs(fast, batch), outputs(backbone, batch)) < 0.1


@pytest.mark.slow
def test_compiled_blocks_are_the_same_at_any_size_and_compiled_twice() -> None:
    """By a compiler that changes nothing: what a GPU's makes of them is measured by `optimize`, there. In a process of
    its own, without the type checks of the tests, which would be compiled too."""
    code = (
        "import torch\n"
        "from torch._dynamo.testing import CompileCounter\n"
        "from vitbackbone import load_backbone\n"
        "from vitbackbone.runtime import routes\n"
        "nano, counter = load_backbone('nano'), CompileCounter()\n"
        "fast = routes.compiled(nano, torch.randn(2, 3, 32, 32), routes.bfloat16, compiler=counter)\n"
        "want = routes.bfloat16(nano, torch.randn(2, 3, 32, 32))\n"
        "sizes = (32, 32), (40, 24), (24, 56), (16, 64)\n"
        "with torch.inference_mode():\n"
        "    for batch in (torch.randn(2, 3, *size) for size in sizes):\n"
        "        assert torch.equal(fast(batch).patches, want(batch).patches)\n"
        "    assert counter.frame_count == 2, counter.frame_count\n"
        "    mixed = [torch.randn(3, *size) for size in sizes]\n"
        "    assert torch.equal(fast(mixed).patches, want(mixed).patches)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["cls", "swiglu"])
def test_on_a_gpu_the_gelu_is_left_to_the_linear_layer(name: str) -> None:
    fast = routes.bfloat16(VITS[name], MIXED)
    assert (type(fast.blocks[0].mlp) is GatedMlp) or (type(fast.blocks[0].mlp.fc1) is linears.GeluLinear)
    for batch in (images(2, 3, 40, 56), MIXED):
        with torch.inference_mode():
            assert compare(fast(batch), VITS[name](batch)).cosine > 0.999


def test_a_wrong_gelu_is_not_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_addmm_activation", lambda bias, x, weight, use_gelu: x @ weight + bias)
    assert "is off by" in linears.gelu_trouble(BF16, torch.device("cpu"))
    fast = routes.bfloat16(VITS["cls"], MIXED)
    assert type(fast.blocks[0].mlp.fc1) is linears.CastLinear


def test_what_is_not_compiled_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("windows", "relative spline"):
        with pytest.raises(routes.Unavailable, match="windows and relative positions"):
            routes.compiled(VITS[name], MIXED, routes.bfloat16, compiler="eager")

    def no_compiler(graph: object, given: object) -> object:
        raise RuntimeError("no GPU compiler")

    torch.compiler.reset()
    with pytest.raises(routes.Unavailable, match="torch cannot compile it here .*no GPU compiler"):
        routes.compiled(VITS["cls"], MIXED, routes.bfloat16, compiler=no_compiler)


@pytest.mark.parametrize("queries", [5, 300])
@pytest.mark.parametrize("kind", ["none", "bias", "mask"])
def test_attention_in_blocks_is_torchs_fused_one(queries: int, kind: str) -> None:
    q, k, v = images(2, 3, queries, 8), images(2, 3, 300, 8, seed=1), images(2, 3, 300, 8, seed=2)
    bias = {"none": None, "bias": images(1, 3, queries, 300, seed=3), "mask": images(2, 1, queries, 300, seed=4) > 0}[
        kind
    ]
    assert relative_error(linears.attend_in_blocks(q, k, v, bias), attend(q, k, v, bias)) < 1e-5


def test_scales_are_folded_into_the_linear_before_them() -> None:
    """And not into parameters: those are the checkpoint's."""
    vit = tiny_vit(layer_scale=True)
    fast = routes.unpacked(vit, MIXED, dtype=FP32)
    assert all(type(block.ls1) is linears.Folded and type(block.ls2) is linears.Folded for block in fast.blocks)
    assert furthest(outputs(fast, MIXED), outputs(vit, MIXED)) < 1e-5
    assert weights_sha256(fast) == weights_sha256(vit)


def test_an_adapter_on_a_linear_layer_takes_part() -> None:
    class Adapter(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + x.sum(dim=-1, keepdim=True)

    vit = copy.deepcopy(VITS["registers"])
    vit.blocks[0].attn.proj = Adapter(vit.blocks[0].attn.proj)
    assert furthest(outputs(routes.unpacked(vit, MIXED, dtype=FP32), MIXED), outputs(vit, MIXED)) < 1e-5
    with pytest.raises(routes.Unavailable, match="it has Adapter for a linear layer; merge adapters into it"):
        routes.unpacked(vit, MIXED, dtype=BF16)
    for precision in ("bf16", "int8"):
        assert optimize(vit, precision, "native").fidelity.cosine > 0.999


def test_below_float32_there_is_no_path_for_what_is_no_vit() -> None:
    with pytest.raises(routes.Unavailable, match="a TimmBackbone is run in float32 alone"):
        routes.unpacked(BACKBONES["resnet"], MIXED, dtype=BF16)


int8 = partial(routes.int8, make=eight_bits.reference)


def closeness(vit: ViT) -> float:
    """Return the least cosine in 8 bits. A norm right behind a product makes its rounding errors as large as it makes
    the product."""
    return 0.97 if vit.config.branch_norm != "before" or vit.config.v_norm else 0.995


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize(
    "make",
    [
        eight_bits.reference,
        pytest.param(eight_bits.onednn, marks=onednn_int8),
    ],
)
def test_int8_is_close(name: str, make) -> None:
    vit = VITS[name]
    batch = images(2, 3, 40, 56)
    fast = routes.int8(vit, MIXED, make=make)
    assert sum(isinstance(module, eight_bits.Int8Linear) for module in fast.modules()) == 4 * vit.config.depth
    with torch.inference_mode():
        assert closeness(vit) < compare(fast(batch), vit(batch)).cosine < 1 - 1e-7
    assert weights_sha256(fast) == weights_sha256(vit)


@pytest.mark.parametrize("name", VITS)
def test_int8_is_as_close_with_attention_in_bfloat16(name: str) -> None:
    vit, batch = VITS[name], images(2, 3, 40, 56)
    fast = int8(vit, MIXED, attention=BF16)
    with torch.inference_mode():
        want = vit(batch)
        assert compare(fast(batch), want).cosine > closeness(vit)
        assert not torch.equal(fast(batch).patches, int8(vit, MIXED)(batch).patches)


def test_values_are_rounded_to_the_nearest_of_8_bits() -> None:
    x = 300 * images(3, 7, 48)
    for zero in (0, 3, 131, 255):
        assert torch.equal(eight_bits.rounded(x, zero), (x + zero).round().clamp(0, 255).to(torch.uint8))


def loss(build, vit: ViT) -> float:
    batch = images(4, 3, 40, 56)
    with torch.inference_mode():
        return 1 - compare(build(vit, batch)(batch), vit(batch)).cosine


@pytest.mark.parametrize("build", [int8, partial(routes.unpacked, dtype=BF16)], ids=["int8", "bf16"])
def test_outlier_channels_cost_little_closeness(build) -> None:
    vit = tiny_vit(dim=64, mlp_dim=128)
    assert loss(build, with_outliers(vit)) < 3 * loss(build, vit)


def test_int8_without_what_is_done_about_outliers_would_lose_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the two measures alone does not do."""
    vit = with_outliers(tiny_vit(dim=64, mlp_dim=128))
    both = loss(int8, vit)
    with monkeypatch.context() as patch:
        patch.setattr(eight_bits, "SMOOTHING", 0.0)
        assert loss(int8, vit) > 4 * both
    monkeypatch.setattr(eight_bits, "FEWEST", 0)
    assert loss(int8, vit) > 4 * both


# ---- what is handed back ------------------------------------------------------------------------------------------


def only(monkeypatch: pytest.MonkeyPatch, *rows: Route) -> None:
    """These paths alone, of which the last is the fastest."""
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
    with pytest.raises(TypeError, match="copy or pickle the plain one"):
        pickle.dumps(fast)
    with pytest.raises(TypeError, match="copy or pickle the plain one"):
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


# ---- closeness ----------------------------------------------------------------------------------------------------


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


# ---- the choice ---------------------------------------------------------------------------------------------------


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
    assert linears.trouble(FP32)
    with caplog.at_level(logging.INFO, "vitbackbone"):
        fast = optimize(VITS["cls"], engine="native")
    (record,) = caplog.records
    assert "fp32 by torch as it is, the only route" in record.getMessage()
    assert re.search(f"not fp32 by oneDNN's packed linears: .*{reason}", record.getMessage())
    assert furthest(outputs(fast, MIXED), outputs(VITS["cls"], MIXED)) == 0


def test_operations_that_torch_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
    assert "no packed torch.float32 linears" in linears.trouble(FP32)


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
        "backbone is a LayerNorm; want what load_backbone returns",
    ]
