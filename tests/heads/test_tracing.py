"""Attached heads under `torch.compile` and `torch.export`: one graph takes every batch and image size.

    python -m tests.heads.test_tracing NAME

traces one head. The tests run this in a process of its own: the type checks of the tests would be traced too.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from heads import Attached, attach, create_head
from heads.names import BUILT_IN
from tests.heads.small_heads import OPTIONS, tensors
from tests.helpers import randomise, relative_error, tiny_vit

# Not `fpn`, which fits no plain ViT.
NAMES = sorted(BUILT_IN.keys() - {"fpn"})
QUICK = {"linear"}  # each trace takes seconds
BATCH_ONLY = {"simple_pyramid"}  # torch bounds the image size where a pool rounds sizes up
LIMIT = 1e-5


def attached(name: str) -> Attached:
    vit = tiny_vit(depth=6, num_registers=1)
    return attach(vit, {"it": randomise(create_head(name, vit.spec, **OPTIONS[name]))}).eval()


class Flat(nn.Module):
    """The output as a tuple of tensors, whatever a head makes."""

    def __init__(self, model: Attached) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors(self.model(images)["it"]))


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert relative_error(a, b) < LIMIT


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in NAMES])
def test_heads_are_traced_for_any_batch_and_size(name: str) -> None:
    command = [sys.executable, "-m", "tests.heads.test_tracing", name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]


def trace(name: str) -> None:
    model = attached(name)
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=count, fullgraph=True)
    with torch.no_grad():
        for batch in (2, 3, 4, 5):
            x = torch.randn(batch, 3, 32, 48)
            same(tuple(tensors(compiled(x)["it"])), Flat(model)(x))
        assert len(graphs) <= 2  # the first one, and one for any batch
        dynamic = [0] if name in BATCH_ONLY else [0, 2, 3]
        shapes = (dict.fromkeys(dynamic, Dim.DYNAMIC),)
        exported = torch.export.export(Flat(model), (torch.randn(2, 3, 48, 64),), dynamic_shapes=shapes).module()
        for size in ((3, 3, 32, 80), (5, 3, 64, 48)) if name not in BATCH_ONLY else ((3, 3, 48, 64), (5, 3, 48, 64)):
            x = torch.randn(*size)
            same(exported(x), Flat(model)(x))


if __name__ == "__main__":
    torch.set_num_threads(1)
    trace(sys.argv[1])
