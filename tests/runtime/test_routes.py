"""Each fast route gives the features of the plain backbone, as closely as its precision allows."""

import copy
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backbones import BACKBONES, VITS, images
from tests.helpers import relative_error, tiny_vit
from tests.old_torch import compiles
from tests.runtime.outliers import with_outliers
from tests.runtime.outputs import BF16, FP32, MIXED, furthest, outputs, packed_fp32, parts
from vitbackbone import ViT
from vitbackbone.contract.fingerprint import weights_sha256
from vitbackbone.model.attention import attend
from vitbackbone.model.layers import GatedMlp
from vitbackbone.runtime import int8 as eight_bits
from vitbackbone.runtime import kernels, routes
from vitbackbone.runtime.choice import optimize
from vitbackbone.runtime.fidelity import compare

packed_bf16 = pytest.mark.skipif(bool(kernels.trouble(BF16)), reason=kernels.trouble(BF16))

onednn_int8 = pytest.mark.skipif(bool(eight_bits.int8_trouble()), reason=eight_bits.int8_trouble())


@packed_fp32
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("fuses", [False, True], ids=["", "fused"])
def test_packed_float32_is_the_plain_backbone_to_1e5(name: str, fuses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    capability = "AVX512" if fuses else "AVX2"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    backbone = BACKBONES[name]
    fast = routes.packed(backbone, MIXED)
    assert any(isinstance(module, kernels.PackedLinear) for module in fast.modules()) or name in ("resnet",)
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
    assert (type(fast.blocks[0].mlp) is GatedMlp) or (type(fast.blocks[0].mlp.fc1) is kernels.GeluLinear)
    for batch in (images(2, 3, 40, 56), MIXED):
        with torch.inference_mode():
            assert compare(fast(batch), VITS[name](batch)).cosine > 0.999


def test_a_wrong_gelu_is_not_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_addmm_activation", lambda bias, x, weight, use_gelu: x @ weight + bias)
    assert "is off by" in kernels.gelu_trouble(BF16, torch.device("cpu"))
    fast = routes.bfloat16(VITS["cls"], MIXED)
    assert type(fast.blocks[0].mlp.fc1) is kernels.CastLinear


@compiles
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
    assert relative_error(kernels.attend_in_blocks(q, k, v, bias), attend(q, k, v, bias)) < 1e-5


def test_scales_are_folded_into_the_linear_before_them() -> None:
    """And not into parameters: those are the checkpoint's."""
    vit = tiny_vit(layer_scale=True)
    fast = routes.unpacked(vit, MIXED, dtype=FP32)
    assert all(type(block.ls1) is kernels.Folded and type(block.ls2) is kernels.Folded for block in fast.blocks)
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
    with pytest.raises(routes.Unavailable, match="a TimmBackbone is run only in float32"):
        routes.unpacked(BACKBONES["resnet"], MIXED, dtype=BF16)


int8 = partial(routes.int8, make=eight_bits.reference)


def closeness(vit: ViT) -> float:
    """Return the least cosine in 8 bits. A norm right after a product makes its rounding errors as large as it makes
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
    """Neither of the two measures is enough by itself."""
    vit = with_outliers(tiny_vit(dim=64, mlp_dim=128))
    both = loss(int8, vit)
    with monkeypatch.context() as patch:
        patch.setattr(eight_bits, "SMOOTHING", 0.0)
        assert loss(int8, vit) > 4 * both
    monkeypatch.setattr(eight_bits, "FEWEST", 0)
    assert loss(int8, vit) > 4 * both
