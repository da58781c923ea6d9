"""A ViT that OpenVINO runs is the plain one to a rounding, for every family."""

import copy
import pickle
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.backbones import VITS, images
from tests.contract import test_contract as contract
from tests.helpers import relative_error, tiny_vit
from tests.runtime.outliers import with_outliers
from vitbackbone import Backbone, Features, ViT, fingerprint
from vitbackbone.contract.fingerprint import weights_sha256
from vitbackbone.networks.timm.backbone import TimmBackbone, TimmConfig
from vitbackbone.runtime import openvino as engine
from vitbackbone.runtime import routes
from vitbackbone.runtime.fidelity import compare
from vitbackbone.runtime.openvino import OpenVinoBackbone

ov = pytest.importorskip("openvino")
needs_int8 = pytest.mark.skipif(bool(engine._int8_trouble()), reason=engine._int8_trouble())


@cache
def backbone_of(name: str) -> OpenVinoBackbone:
    return OpenVinoBackbone(VITS[name])


@pytest.fixture(params=VITS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def assert_equal(got: Features, want: Features) -> None:
    assert got.geometry == want.geometry
    assert (got.cls is None) == (want.cls is None)
    assert got.registers.shape == want.registers.shape
    for a, b in ((got.cls, want.cls), (got.registers, want.registers), (got.patches, want.patches)):
        if a is not None and b is not None and b.numel():
            assert relative_error(a, b) < 1e-5
    assert relative_error(got.pooled, want.pooled) < 1e-5


# ---- equal to the plain ViT ---------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), batch=st.integers(1, 3))
@pytest.mark.parametrize("name", VITS)
def test_features_are_those_of_the_plain_backbone_at_any_size(name: str, height: int, width: int, batch: int) -> None:
    x = images(batch, 3, height, width)
    with torch.inference_mode():
        assert_equal(backbone_of(name)(x), VITS[name](x))


def test_so_are_those_of_every_layer_with_and_without_norm(name: str) -> None:
    x, vit = images(2, 3, 24, 40), VITS[name]
    layers, norm = [-1, 0, 1, 0], [False, vit.has_norm, False, False]
    with torch.inference_mode():
        pairs = zip(backbone_of(name).forward_layers(x, layers, norm), vit.forward_layers(x, layers, norm), strict=True)
        for got, want in pairs:
            assert_equal(got, want)


def test_so_are_those_of_mixed_sizes(name: str) -> None:
    sizes = [(32, 32), (17, 70), (50, 9), (32, 32), (30, 30)]
    batch = [images(3, *size, seed=seed) for seed, size in enumerate(sizes)]
    with torch.inference_mode():
        assert_equal(backbone_of(name)(batch), VITS[name](batch))


def test_so_is_what_is_no_patch(name: str) -> None:
    backbone, vit = backbone_of(name), VITS[name]
    batch = [images(3, 32, 32), images(3, 17, 70, seed=1), images(3, 32, 32, seed=2)]
    layers, norm = [1, -1], [False, vit.has_norm]
    for x in (images(2, 3, 24, 40), batch):
        with torch.inference_mode():
            for got, want in zip(
                backbone.forward_prefix(x, layers, norm), vit.forward_prefix(x, layers, norm), strict=True
            ):
                assert relative_error(got.pooled, want.pooled) < 1e-5
                assert got.cls is None or relative_error(got.cls, want.cls) < 1e-5
                assert not want.registers.numel() or relative_error(got.registers, want.registers) < 1e-5


@pytest.mark.parametrize(
    "promise",
    [
        contract.test_it_is_a_backbone_to_python,
        contract.test_tokens_are_the_map_in_raster_order,
        contract.test_layers_come_in_the_order_asked_with_duplicates_and_negatives,
        contract.test_each_layer_may_have_its_own_norm,
        contract.test_batch_size_does_not_change_the_features,
        contract.test_mixed_sizes_equal_each_image_alone,
        contract.test_one_image_of_a_batch,
        contract.test_norm_means_the_final_norm_of_this_checkpoint,
        contract.test_a_size_the_patch_does_not_divide_is_padded_with_the_mean_colour,
    ],
    ids=lambda promise: promise.__name__,
)
@pytest.mark.parametrize("name", ["registers", "windows", "rotary neighbours"])
def test_the_contract(name: str, promise) -> None:
    with torch.no_grad():
        promise(backbone_of(name))


def test_it_tells_the_same_of_itself(name: str) -> None:
    backbone, vit = backbone_of(name), VITS[name]
    assert isinstance(backbone, Backbone)
    assert backbone.spec == vit.spec
    assert backbone.preprocess == vit.preprocess
    assert weights_sha256(backbone) == weights_sha256(vit)
    assert fingerprint(backbone) == fingerprint(vit)


def test_attention_maps_are_torchs(name: str) -> None:
    x = images(1, 3, 32, 40)
    with torch.inference_mode():
        got, want = (each.attention(x, [-1])[0].weights for each in (backbone_of(name), VITS[name]))
    assert torch.equal(got, want)


@pytest.mark.parametrize("name", ["mean", "neck", "windows", "attention pool"])
def test_a_graph_that_saw_a_single_token_first_is_right_for_more(name: str) -> None:
    backbone = OpenVinoBackbone(VITS[name])
    with torch.inference_mode():
        for shape in ((1, 3, 8, 8), (1, 3, 24, 24), (2, 3, 8, 64)):
            assert_equal(backbone(images(*shape)), VITS[name](images(*shape)))


# ---- one graph ----------------------------------------------------------------------------------------------------


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Collect the graph, the device and the settings of each compilation."""
    calls: list[tuple] = []
    core = ov.Core()

    class Counting:
        def compile_model(self, *args):
            calls.append(args)
            return core.compile_model(*args)

        def get_property(self, *args):
            return core.get_property(*args)

    monkeypatch.setattr(engine, "_core", Counting)
    return calls


@pytest.mark.parametrize("name", ["cls", "windows", "relative spline", "rotary halves"])
def test_all_batches_and_sizes_share_a_graph(name: str, compiled: list[tuple]) -> None:
    backbone = OpenVinoBackbone(VITS[name])
    assert not compiled
    for shape in ((1, 3, 32, 32), (3, 3, 17, 70), (2, 3, 64, 24)):
        backbone(images(*shape))
    backbone([images(3, 32, 32), images(3, 17, 70)])
    assert len(compiled) == 1
    backbone.forward_layers(images(1, 3, 32, 32), [0, 1], norm=False)
    assert len(compiled) == 2


def test_images_of_the_samples_size_have_graphs_of_their_own(name: str, compiled: list[tuple]) -> None:
    vit, x = VITS[name], images(3, 3, 40, 56)
    backbone = OpenVinoBackbone(vit, sample=x[:2])
    with torch.inference_mode():
        for batch in (x[:1], x, images(2, 3, 24, 56), [x[0], images(3, 24, 72), x[1], images(3, 24, 56)]):
            assert_equal(backbone(batch), vit(batch))
        for got, want in zip(
            backbone.forward_layers(x, [0, 1], False), vit.forward_layers(x, [0, 1], False), strict=True
        ):
            assert_equal(got, want)
    shapes = [str(graph.input("images").partial_shape) for graph, *_ in compiled]
    assert shapes == ["[1,3,40,56]", "[?,3,40,56]", "[?,3,?,?]", "[?,3,40,56]"]
    assert [len(graph.inputs) for graph, *_ in compiled if graph.input("images").partial_shape[2].is_static] == [1] * 3


def test_a_sample_of_several_sizes_has_none(compiled: list[tuple]) -> None:
    backbone = OpenVinoBackbone(VITS["cls"], sample=[images(3, 32, 32), images(3, 17, 70)])
    backbone(images(1, 3, 32, 32))
    backbone(images(1, 3, 17, 70))
    assert len(compiled) == 1


def test_it_runs_in_as_many_threads_as_torch(compiled: list[tuple]) -> None:
    backbone, before = OpenVinoBackbone(VITS["cls"]), torch.get_num_threads()
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            backbone(images(1, 3, 32, 32))
    finally:
        torch.set_num_threads(before)
    assert [options["INFERENCE_NUM_THREADS"] for *_, options in compiled] == [1, 2]


def test_a_few_graphs_are_kept(compiled: list[tuple]) -> None:
    backbone, x = OpenVinoBackbone(tiny_vit(depth=7)), images(1, 3, 32, 32)
    for layer in (0, 1, 2, 3, 4, 5, 3, 2, 6, 0):  # the first makes room for the seventh
        backbone.forward_layers(x, [layer], norm=False)
    assert len(compiled) == 8
    assert len(backbone._compiled) == engine.KEPT


def test_no_block_runs_past_the_deepest_and_the_deepest_of_a_prefix_asks_for_it_alone(compiled: list[tuple]) -> None:
    backbone, x = OpenVinoBackbone(tiny_vit(num_registers=2)), images(1, 3, 32, 32)
    backbone.forward_layers(x, [1, 0], norm=False)
    backbone.forward_prefix(x, [1], norm=False)
    for (graph, *_), queries in zip(compiled, ([-1, -1], [-1, 3]), strict=True):
        graph.reshape({"images": [1, 3, 32, 32]})
        attention = [op for op in graph.get_ordered_ops() if op.get_type_name() == "Softmax"]
        assert [op.input(0).get_shape()[2] for op in attention] == [19 if count < 0 else count for count in queries]


# ---- its own weights ----------------------------------------------------------------------------------------------


def test_training_the_plain_backbone_on_changes_nothing() -> None:
    vit, x = tiny_vit(), images(1, 3, 32, 32)
    backbone = OpenVinoBackbone(vit)
    before = vit(x)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.1)
    assert_equal(backbone(x), before)
    assert_equal(OpenVinoBackbone(vit)(x), vit(x))
    assert relative_error(vit(x).patches, before.patches) > 0.01


def test_no_gradients_and_no_training_mode() -> None:
    backbone = OpenVinoBackbone(tiny_vit(drop_path=0.9, cls=False, pool="map").train())
    x = images(2, 3, 32, 40)
    features = backbone.train()(x)
    assert not any(module.training for module in backbone.modules())
    assert not features.patches.requires_grad
    assert not features.pooled.requires_grad
    head = nn.Linear(16, 2)
    head(features.pooled).sum().backward()  # a head on it is trained as on any frozen backbone
    assert head.weight.grad is not None
    with pytest.raises(ValueError, match="no gradients for images"):
        backbone(x.clone().requires_grad_())
    with torch.no_grad():
        backbone(x.clone().requires_grad_())
    backbone.requires_grad_()
    with pytest.raises(ValueError, match="no gradients for parameters"):
        backbone(x)


def test_features_made_in_inference_mode_stay_there() -> None:
    with torch.inference_mode():
        features = OpenVinoBackbone(tiny_vit())(images(1, 3, 32, 32))
    assert features.patches.is_inference()
    assert features.pooled.is_inference()


def test_what_was_returned_is_not_overwritten() -> None:
    backbone = backbone_of("registers")
    first = backbone(images(2, 3, 32, 32))
    before = first.patches.clone(), first.pooled.clone()
    for seed in range(1, 20):
        backbone(images(2, 3, 32, 32, seed=seed))
    assert torch.equal(first.patches, before[0])
    assert torch.equal(first.pooled, before[1])


def test_threads_may_share_it() -> None:
    backbone = OpenVinoBackbone(VITS["registers"])
    batches = [images(1 + seed % 3, 3, 32, 32 + 8 * (seed % 4), seed=seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for x, got in zip(batches, pool.map(backbone, batches), strict=True):
            assert_equal(got, VITS["registers"](x))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))], ids=["copied", "pickled"])  # noqa: S301  # our own bytes
def test_it_is_copied_and_pickled_without_what_is_compiled(again) -> None:
    backbone, x = OpenVinoBackbone(tiny_vit()), images(1, 3, 24, 40)
    want = backbone(x)
    got = again(backbone)
    assert got._compiled == {}
    assert torch.equal(got(x).patches, want.patches)


# ---- in 8 bits ----------------------------------------------------------------------------------------------------


def kernels_of(backbone: OpenVinoBackbone) -> Counter[str]:
    """Return the precisions in which the compiled linear layers run."""
    found: Counter[str] = Counter()
    for graph in backbone._compiled.values():
        for op in graph.compiled.get_runtime_model().get_ops():
            kind, kernel = (op.get_rt_info()[key].astype(str) for key in ("layerType", "primitiveType"))
            found[kernel.rsplit("_", 1)[-1].lower()] += kind.startswith("FullyConnected")
    return +found


@needs_int8
def test_all_linear_layers_of_the_blocks_multiply_8_bits(name: str) -> None:
    vit, batch = VITS[name], images(2, 3, 40, 56)
    backbone = OpenVinoBackbone(vit, "int8", batch)
    with torch.inference_mode():
        got, want = backbone(batch), vit(batch)
    assert 0.995 < compare(got, want).cosine < 1 - 1e-7
    per_block = 6  # queries, keys and values are three; a gated MLP has one for both of its branches
    assert kernels_of(backbone) == {"i8": per_block * vit.config.depth}
    assert weights_sha256(backbone) == weights_sha256(vit)


@needs_int8
@pytest.mark.parametrize("name", ["registers", "rotary halves"])
def test_so_do_those_for_the_prefix_alone(name: str) -> None:
    vit, batch = VITS[name], images(2, 3, 40, 56)
    backbone = OpenVinoBackbone(vit, "int8", batch)
    with torch.inference_mode():
        (got,), want = backbone.forward_prefix(batch, [-1]), backbone(batch)
    assert relative_error(got.cls, want.cls) < 1e-5
    assert kernels_of(backbone)["i8"] == 2 * 6 * vit.config.depth


@needs_int8
def test_outlier_channels_cost_little_closeness() -> None:
    def loss(vit: ViT) -> float:
        batch = images(4, 3, 40, 56)
        with torch.inference_mode():
            return 1 - compare(OpenVinoBackbone(vit, "int8", batch)(batch), vit(batch)).cosine

    vit = tiny_vit(dim=64, mlp_dim=128)
    assert loss(with_outliers(vit)) < 3 * loss(vit)


@needs_int8
def test_8_bits_are_the_same_after_a_pickle() -> None:
    batch = images(2, 3, 40, 56)
    backbone = OpenVinoBackbone(tiny_vit(), "int8", batch)
    again = pickle.loads(pickle.dumps(backbone))  # noqa: S301  # our own
    with torch.inference_mode():
        assert torch.equal(again(batch).patches, backbone(batch).patches)


@needs_int8
def test_all_else_is_in_bfloat16_where_that_is_asked() -> None:
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no instructions for bfloat16")
    vit, batch = tiny_vit(), images(2, 3, 40, 56)
    both, alone = (OpenVinoBackbone(vit, "int8", batch, rest) for rest in ("bf16", "fp32"))
    with torch.inference_mode():
        want = vit(batch)
        assert compare(both(batch), want).cosine > 0.995
        assert 1e-4 < relative_error(both(batch).patches, alone(batch).patches) < 0.05
    assert both.runtime != alone.runtime


def test_what_it_says_of_itself_is_what_optimize_says() -> None:
    for route in (each for each in routes.ROUTES if each.engine == "openvino"):
        with nullcontext() if route.precision == "fp32" else suppress(routes.Unavailable):
            assert route.build(tiny_vit(), images(1, 3, 32, 32)).runtime == route.runtime


# ---- refused ------------------------------------------------------------------------------------------------------


def test_without_openvino_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    engine._core.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'vitbackbone\[openvino\]'"):
        OpenVinoBackbone(tiny_vit())


@pytest.mark.parametrize("precision", ["int4", "fp16", "f32"])
def test_precisions_that_are_none_are_refused(precision: str) -> None:
    make = partial(OpenVinoBackbone.__init__.__wrapped__, object.__new__(OpenVinoBackbone), tiny_vit())
    with pytest.raises(ValueError, match=f"precision='{precision}'; want one of fp32, bf16, int8"):
        make(precision)
    with pytest.raises(ValueError, match=f"rest='{precision}'; want one of fp32, bf16"):
        make("int8", images(1, 3, 32, 32), precision)


def test_8_bits_without_a_sample_are_refused() -> None:
    with pytest.raises(ValueError, match="precision='int8' needs calibration: give a batch"):
        OpenVinoBackbone(tiny_vit(), "int8")


def test_8_bits_are_refused_where_they_are_computed_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by OpenVINO on CPUs whose sums of two products overflow."""
    engine._int8_trouble.cache_clear()
    monkeypatch.setattr(engine, "reference", lambda weights: lambda *_: torch.zeros(37, 80))
    with pytest.raises(ValueError, match=r"OpenVINO's 8-bit products are wrong here.*use precision='fp32'"):
        OpenVinoBackbone(tiny_vit(), "int8", images(1, 3, 32, 32))
    engine._int8_trouble.cache_clear()


def test_bf16_is_that_or_refused() -> None:
    """OpenVINO by itself would accept the name and run float32."""
    x = images(2, 3, 32, 40)
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(ValueError, match="this CPU has no instructions for bfloat16; use 'fp32'"):
            OpenVinoBackbone(tiny_vit(), "bf16")
        with pytest.raises(ValueError, match="this CPU has no instructions for bfloat16; use 'fp32'"):
            OpenVinoBackbone(tiny_vit(), "int8", x, "bf16")
        return
    error = relative_error(OpenVinoBackbone(tiny_vit(), "bf16")(x).patches, tiny_vit()(x).patches)
    assert 1e-4 < error < 0.05


def test_what_is_no_vit_is_refused() -> None:
    swin = TimmBackbone(TimmConfig("resnet18"))
    with pytest.raises(ValueError, match="backbone is a TimmBackbone; want a ViT"):
        OpenVinoBackbone.__init__.__wrapped__(object.__new__(OpenVinoBackbone), swin)


def test_a_vit_with_other_parameters_is_refused() -> None:
    vit = tiny_vit()
    vit.blocks[0].attn.qkv = nn.utils.parametrizations.weight_norm(vit.blocks[0].attn.qkv)
    with pytest.raises(ValueError, match=r"other parameters than a plain ViT \(blocks.0.attn.qkv.*merge adapters"):
        OpenVinoBackbone(vit)


def test_other_parameters_than_float32_on_the_cpu_are_refused() -> None:
    for vit in (tiny_vit().half(), tiny_vit().to("meta")):
        with pytest.raises(ValueError, match="OpenVINO wants float32 on the CPU"):
            OpenVinoBackbone(vit)
    backbone = OpenVinoBackbone(tiny_vit())
    with pytest.raises(ValueError, match="OpenVINO wants float32 on the CPU"):
        backbone.double()(images(1, 3, 32, 32))
    assert backbone.float()(images(1, 3, 32, 32)).patches.dtype == torch.float32


def test_other_weights_are_not_loaded_into_it() -> None:
    vit: ViT = tiny_vit()
    with pytest.raises(ValueError, match="load these into a ViT"):
        OpenVinoBackbone(vit).load_state_dict(tiny_vit(seed=1).state_dict())
