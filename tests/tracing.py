"""Tracing of a network in a process of its own, because a tracer would follow the type checks of the tests too.

    python -m tests.tracing export|onnx|compile NAME...

A name is of a backbone of the contract suite, `head:NAME`, or one of the `RESULTS`. Prints a line of JSON for each: its
name and the largest relative error over batches and sizes, or the number of graphs.
"""

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from heads import attach, create_head
from tests.backbones import BACKBONES
from tests.heads.small_heads import OPTIONS
from tests.helpers import randomise, tiny_vit
from tests.timm_networks import BACKBONES as NETWORKS
from vitbackbone import Geometry, ViT, align

# Results other than those of a call, of a small ViT
RESULTS: dict[str, Callable[[ViT, Tensor], Any]] = {
    "prefix": lambda vit, x: vit.forward_prefix(x, [0, -1]),
    "attention": lambda vit, x: vit.attention(x, [0, -1]),
    "attention at one size": lambda vit, x: vit.attention(x, [0, -1]),
    "kept": lambda vit, x: vit.forward_kept(x, torch.arange(2).expand(x.shape[0], -1)),
    "tokens": lambda vit, x: vit(x).tokens,
    "valid": lambda vit, x: vit(x).valid,
    "cls to patches": lambda vit, x: vit.attention(x, [0])[0].cls_to_patches,
    "align": lambda vit, x: align(vit(x), Geometry.of(x, 4)),
    "padding": lambda vit, x: (vit(x).cls, vit(x).geometry.padding[0], vit(x).geometry.sizes[-1]),
}
MAPS = {"neck"}  # whose convolutions on the map want two patches a side or more
LEVELS = {"head:simple_pyramid"}  # whose coarsest level wants two places a side or more
CNNS = {"resnet", "convnext", "hybrid"}
ADAPTED = {"hf vit", "hf cnn"}  # whose patches are found by a run
ONE_SIZE = {"relative spline", "attention at one size", *ADAPTED, *NETWORKS} - CNNS  # docs/how-to/export.md says why
NESTED = {"r26"}  # with `dynamic`, torch takes minutes to simplify the sizes of the paddings in its ResNet
# The sides of images must be multiples of so many pixels.
MULTIPLES = {"head:space_to_depth": 16} | dict.fromkeys([*CNNS, "head:fpn"], 32)
TALL = [(1, 40, 47), (3, 64, 40), (5, 33, 70)]
SIZES = [(1, 33, 47), (3, 64, 40), (5, 17, 70)]
MANY = [(1, 2, 3), (3, 4, 2)]  # in multiples


class Returning(nn.Module):
    """A small ViT that returns one of the `RESULTS`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone = tiny_vit(num_registers=1)
        self.result = RESULTS[name]

    def forward(self, x: Tensor) -> Any:
        return self.result(self.backbone, x)


def network(name: str) -> nn.Module:
    if name in RESULTS:
        return Returning(name).eval()
    if not name.startswith("head:"):
        backbone = BACKBONES[name].eval()
        if name in ADAPTED:
            backbone(images(1, *backbone.spec.image_size))
        return backbone
    side, head = 64 if name in LEVELS else 32, name.removeprefix("head:")
    vit = tiny_vit(depth=6, num_registers=1, image_size=(side, side))
    backbone = BACKBONES["resnet"] if head == "fpn" else vit  # fpn reads levels of several strides
    return attach(backbone, {"head": randomise(create_head(head, backbone.spec, **OPTIONS[head]))}).eval()


def images(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def native(module: nn.Module) -> tuple[int, int]:
    return (module.backbone if hasattr(module, "backbone") else module).spec.image_size


def sizes(name: str, module: nn.Module) -> list[tuple[int, int, int]]:
    if name in ONE_SIZE:
        return [(batch, *native(module)) for batch in (1, 3, 5)]
    if name in LEVELS:
        return TALL
    if name in MULTIPLES:
        return [(batch, h * MULTIPLES[name], w * MULTIPLES[name]) for batch, h, w in MANY]
    return SIZES


def exported(name: str, module: nn.Module) -> ExportedProgram:
    """Export from an example of the native size, for any batch, height and width."""
    least = 33 if name in LEVELS else 17 if name.startswith("head:") else 9 if name in MAPS else None
    height, width = (Dim(side, min=least) for side in "hw")
    if name in MULTIPLES:
        height, width = (MULTIPLES[name] * Dim(side, min=2) for side in "hw")
    dynamic = {0: Dim("b")} if name in ONE_SIZE else {0: Dim("b"), 2: height, 3: width}
    with torch.no_grad():
        return torch.export.export(module, (images(2, *native(module)),), dynamic_shapes=(dynamic,))


def leaves(result: Any) -> list[Tensor]:
    return [torch.as_tensor(leaf) for leaf in pytree.tree_leaves(result) if leaf is not None]


def error(got: list[Tensor], want: list[Tensor]) -> float:
    """The largest error, relative, and infinite where a shape differs."""
    if [x.shape for x in got] != [x.shape for x in want]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(got, want, strict=True) if b.numel()]
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-9)).item() for a, b in pairs)


def wanted(module: nn.Module, x: Tensor, sizes: bool = True) -> list[Tensor]:
    """Return what a graph returns: the parts of features, their pooled vector, and the sizes unless these are fixed."""
    result = module(x)
    if not hasattr(result, "pooled"):
        return leaves(result if sizes else [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)])
    assert result.geometry.sizes == ((x.shape[2], x.shape[3]),) * len(x)
    parts = [result.cls, result.registers, result.patches, result.pooled, *(x.shape[2:] if sizes else ()), len(x)]
    return [torch.as_tensor(part) for part in parts if part is not None]


def export(name: str) -> float:
    module = network(name)
    program = exported(name, module).module()
    with torch.no_grad():
        cases = [images(*size) for size in sizes(name, module)]
        return max(error(leaves(program(x)), wanted(module, x)) for x in cases)


def onnx(name: str) -> float:
    """In ONNX Runtime and in OpenVINO; a graph must have no resizing."""
    import onnx as format
    import onnxruntime
    import openvino

    module, worst = network(name), 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(exported(name, module), dynamo=True, verbose=False).save(path)
        assert name.startswith("head:") or "Resize" not in {node.op_type for node in format.load(path).graph.node}
        session = onnxruntime.InferenceSession(path)
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        for size in sizes(name, module):
            x = images(*size)
            with torch.no_grad():
                want = wanted(module, x, sizes=name not in ONE_SIZE)
            found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            result = compiled(x.numpy())
            also = [result[i] for i in range(len(compiled.outputs))]
            for values in (found, also):
                got = [torch.as_tensor(value).reshape(b.shape) for value, b in zip(values, want, strict=True)]
                worst = max(worst, error(got, want))
    return worst


def compile(name: str) -> int:
    """How many graphs nine batch sizes take. Unless it is told, torch makes one more, for the first size alone."""
    assert _graphs(name, None) <= 2
    return _graphs(name, None, marked=True) if name in NESTED else _graphs(name, True)


def _graphs(name: str, dynamic: bool | None, marked: bool = False) -> int:
    graphs = 0

    def count(graph: torch.fx.GraphModule, _: object) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    module = network(name)
    torch.compiler.reset()
    compiled = torch.compile(module, backend=count, fullgraph=True, dynamic=dynamic)
    with torch.no_grad():
        for batch in range(2, 11):
            x = images(batch, *(native(module) if name in ONE_SIZE else (32, 32)))
            if marked and batch == 2:
                torch._dynamo.mark_dynamic(x, 0)
            assert error(leaves(compiled(x)), leaves(module(x))) < 1e-5
    return graphs


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    run = {"export": export, "onnx": onnx, "compile": compile}[sys.argv[1]]
    for each in sys.argv[2:]:
        print(json.dumps({each: run(each)}), flush=True)
