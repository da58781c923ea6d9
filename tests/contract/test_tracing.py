"""torch.export, ONNX and torch.compile follow a batch of any size through a backbone, and through its heads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

from heads import list_heads
from tests.backbones import BACKBONES
from tests.helpers import cases, tiny_vit
from tests.old_torch import compiles
from tests.tracing import ADAPTED, RESULTS
from vitbackbone import Features, Geometry, View
from vitbackbone.contract.repeated import Repeated

QUICK = {"cls", "head:linear", "kept"}
HEADS = [f"head:{name}" for name in list_heads()]


def traced(kind: str, name: str) -> float:
    command = [sys.executable, "-m", "tests.tracing", kind, name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])[name]


@pytest.mark.parametrize("name", cases([*BACKBONES, *HEADS, *RESULTS], QUICK))
def test_an_exported_graph_takes_any_batch_and_size(name: str) -> None:
    assert traced("export", name) < 1e-5


@pytest.mark.parametrize("name", cases([*BACKBONES, *HEADS, *RESULTS], {"registers"}))
def test_onnx_runtime_and_openvino_compute_the_same(name: str) -> None:
    pytest.importorskip("onnxscript")
    assert traced("onnx", name) < 1e-5


def test_a_saved_program_gives_the_same_results_in_another_process(tmp_path: Path) -> None:
    save = (
        "import torch; from torch.export import Dim; from tests.helpers import tiny_vit\n"
        "model, images = tiny_vit(), torch.randn(3, 3, 32, 32)\n"
        "program = torch.export.export(model, (images[:2],), dynamic_shapes=({0: Dim('batch')},))\n"
        f"torch.export.save(program, {str(tmp_path / 'program.pt2')!r})\n"
        f"torch.save((images, model(images).cls.detach()), {str(tmp_path / 'want')!r})"
    )
    load = (
        "import torch; from vitbackbone import Features\n"
        f"images, want = torch.load({str(tmp_path / 'want')!r})\n"
        f"found = torch.export.load({str(tmp_path / 'program.pt2')!r}).module()(images)\n"
        "assert isinstance(found, Features) and (found.cls - want).abs().max() < 1e-5"
    )
    for code in (save, load):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
        )
        assert done.returncode == 0, done.stderr[-3000:]


@compiles
@pytest.mark.parametrize("name", cases([name for name in (*BACKBONES, *HEADS) if name not in ADAPTED], {"nano"}))
def test_one_compiled_graph_serves_all_batches(name: str) -> None:
    assert traced("compile", name) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("relative spline", "cannot be traced with a dynamic height or width", marks=pytest.mark.slow),
        pytest.param("hf vit", "Export one height and width", marks=pytest.mark.slow),
    ],
)
def test_a_network_that_is_made_for_each_size_says_that_it_wants_one(name: str, message: str) -> None:
    code = (
        "import torch; from torch.export import Dim, export; from tests.backbones import BACKBONES\n"
        "dynamic = ({0: Dim('b'), 2: Dim('h')},)\n"
        f"export(BACKBONES[{name!r}], (torch.randn(2, 3, 32, 32),), dynamic_shapes=dynamic)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert message in done.stderr


def test_the_limit_of_graphs_of_the_process_stays() -> None:
    code = (
        "import torch; from vitbackbone import load_backbone; from vitbackbone.runtime.routes import compiled, plain\n"
        "limit = torch._dynamo.config.recompile_limit\n"
        "compiled(load_backbone('nano'), torch.randn(1, 3, 32, 32), plain, compiler='eager')\n"
        "assert torch._dynamo.config.recompile_limit == limit"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- results as trees ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [torch.randn(2, 3, 33, 47), [torch.randn(3, 32, 32), torch.randn(3, 17, 40)]])
def test_results_are_trees_of_tensors(images: object) -> None:
    vit = tiny_vit(num_registers=2)
    for result in (vit(images), vit.forward_prefix(images, [-1])[0]):
        doubled = pytree.tree_map_only(torch.Tensor, lambda x: 2 * x, result)
        assert type(doubled) is type(result)
        assert torch.equal(doubled.cls, 2 * result.cls)
        if isinstance(result, Features):
            assert torch.equal(doubled.patches, 2 * result.patches)
            assert doubled.geometry == result.geometry
            assert torch.equal(doubled.pooled, 2 * result.pooled)  # the CLS token
    if isinstance(images, torch.Tensor):
        kept = vit.forward_kept(images, torch.tensor([[0, 3], [2, 1]]))
        doubled = pytree.tree_map_only(torch.Tensor, lambda x: 2 * x, kept)
        assert torch.equal(doubled.tokens, 2 * kept.tokens)
        assert doubled.geometry == kept.geometry
        (attention,) = vit.attention(images, [0])
        again = pytree.tree_map(lambda x: x, attention)
        assert (again.grid, again.num_prefix) == (attention.grid, attention.num_prefix)
        assert torch.equal(again.weights, attention.weights)


@pytest.mark.parametrize("pool", ["cls", "prefix", "mean", "map"])
def test_trees_of_one_backbone_have_one_structure(pool: str) -> None:
    vit = tiny_vit(pool=pool)
    one, other = (pytree.tree_structure(vit(torch.randn(n, 3, 24, 24))) for n in (1, 3))
    assert one == other


def test_a_repr_shows_shapes_and_no_numbers() -> None:
    vit, x = tiny_vit(num_registers=2), torch.randn(2, 3, 32, 40)
    assert repr(vit(x)) == (
        "Features(cls=float32[2, 16], registers=float32[2, 2, 16], patches=float32[2, 16, 4, 5], "
        "geometry=Geometry(sizes=((32, 40),) * 2, stride=8, views=None))"
    )
    assert "tensor(" not in repr(vit.forward_prefix(x, [-1])) + repr(vit.attention(x, [-1]))


def test_sizes_that_are_repeated_equal_a_tuple_of_them() -> None:
    repeated = Repeated((3, 5), 3)
    assert repeated == ((3, 5),) * 3
    assert repeated == ((3, 5),) * 3
    assert repeated != ((3, 5),) * 2
    assert repeated != Repeated((3, 5), 2)
    assert Repeated((3, 5), 0) == ()
    assert hash(repeated) == hash(((3, 5),) * 3)
    assert (len(repeated), repeated[1], repeated[1:], list(repeated)) == (3, (3, 5), ((3, 5),) * 2, [(3, 5)] * 3)
    geometry = Geometry.of(torch.zeros(2, 3, 33, 47), 8)
    same = Geometry(((33, 47),) * 2, 8)
    assert geometry == same
    assert (geometry.grids, geometry.padding, geometry.size) == (same.grids, same.padding, same.size)
    view = View((33, 47), (33, 47), (0, 0), (33, 47))
    assert geometry.through([view] * 2) == same.through([view] * 2)


# ---- every method is a call of the module -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cls", "mean", "resnet", "fused"])
def test_hooks_see_every_method(name: str) -> None:
    backbone, x, seen = BACKBONES[name], torch.randn(1, 3, 32, 32), []
    hooks = [
        backbone.register_forward_pre_hook(lambda *_: seen.append("before")),
        backbone.register_forward_hook(lambda *_: seen.append("after")),
    ]
    try:
        for call in (backbone, *(lambda x, f=f: f(x, [0], norm=False) for f in methods(backbone))):
            seen.clear()
            call(x)
            assert seen == ["before", "after"]
    finally:
        for hook in hooks:
            hook.remove()


def methods(backbone: object) -> list[object]:
    return [backbone.forward_layers, backbone.forward_prefix]


def test_hooks_on_blocks_see_the_prefix_too() -> None:
    vit, seen = tiny_vit(), []
    for i, block in enumerate(vit.blocks):
        block.register_forward_hook(lambda *_, i=i: seen.append(i))
    vit.forward_prefix(torch.randn(1, 3, 32, 32), [-1])
    assert seen == [0, 1, 2]


SHARDED = """
import sys, tempfile, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from heads import attach, create_head
from tests.helpers import relative_error, tiny_vit

with tempfile.TemporaryDirectory() as folder:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
    x, plain, sharded = torch.randn(2, 3, 32, 40), tiny_vit(num_registers=1), tiny_vit(num_registers=1)
    for block in sharded.blocks:
        fully_shard(block)
    fully_shard(sharded)
    for call in (lambda m: m.forward_layers(x, [0, -1]), lambda m: m.forward_prefix(x, [-1]), lambda m: (m(x),)):
        for got, want in zip(call(sharded), call(plain), strict=True):
            assert relative_error(got.cls, want.cls) < 1e-6
    sum(each.patches.square().sum() for each in sharded.forward_layers(x, [0, -1])).backward()
    assert sharded.blocks[0].mlp.fc1.weight.grad is not None
    attached = attach(plain, {"map": create_head("linear", plain.spec, num_classes=3)}).train()
    ddp = DistributedDataParallel(attached)
    ddp(x)["map"].square().sum().backward()
    assert plain.blocks[-1].mlp.fc1.weight.grad.abs().sum() > 0
    dist.destroy_process_group()
"""


def test_fsdp_and_ddp_see_layers_and_heads() -> None:
    command = [sys.executable, "-c", SHARDED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
