"""A recorded graph computes what the backbone computes. Without a GPU, the tests hold when a graph is recorded."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.backbones import VITS
from tests.helpers import relative_error
from vitbackbone import Asked, Geometry, ViT
from vitbackbone.runtime import cuda_graphs as graphs
from vitbackbone.runtime import routes

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
RECORDED = [name for name, vit in VITS.items() if vit.config.relative_position == "none"]


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on_cuda(name: str) -> ViT:
    return routes.share(VITS[name]).cuda()


@pytest.fixture
def vit() -> ViT:
    fast = routes.share(VITS["registers"])
    fast.engine = graphs.Recordings()
    return fast


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that were recorded, by a recording that computes as ever."""
    shapes = []

    class Recorded:
        def __init__(self, vit: ViT, images: Tensor, geometry: Geometry, asked: Asked) -> None:
            shapes.append(tuple(images.shape))
            self.run = partial(vit.tokens, geometry=geometry, asked=asked)

        def __call__(self, images: Tensor) -> object:
            return self.run(images)

    monkeypatch.setattr(graphs, "Recording", Recorded)
    monkeypatch.setattr(graphs, "_worthwhile", lambda images: True)
    monkeypatch.setattr(graphs, "_stream", lambda: 0)
    return shapes


def test_a_shape_is_recorded_when_it_comes_again(vit: ViT, made: list[tuple[int, ...]]) -> None:
    with torch.inference_mode():
        vit(images(2, 3, 48, 40))
        vit(images(1, 3, 48, 40))
        assert made == []
        vit(images(2, 3, 48, 40))
        vit(images(2, 3, 48, 40))
        assert made == [(2, 3, 48, 40)]
        vit.forward_layers(images(2, 3, 48, 40), [0, 1])  # other layers are other tokens
        vit.forward_prefix(images(2, 3, 48, 40), [-1])
        assert len(made) == 1
        vit([images(3, 48, 40), images(3, 40, 40)])
        vit([images(3, 48, 40), images(3, 40, 40)])
        assert len(made) == 1


def test_the_latest_shapes_are_kept(vit: ViT, made: list[tuple[int, ...]]) -> None:
    with torch.inference_mode():
        for _ in range(2):
            for n in range(1, graphs.SHAPES + 2):
                vit(images(n, 3, 16, 16))
    assert made == []  # each was forgotten before it came again
    assert len(vit.engine.recordings) == graphs.SHAPES


def test_on_a_cpu_nothing_is_recorded() -> None:
    assert not graphs._worthwhile(images(1, 3, 16, 16))


def test_changed_weights_are_refused(made: list[tuple[int, ...]]) -> None:
    fast = routes.unpacked(VITS["cls"], images(1, 3, 16, 16), dtype=torch.bfloat16)
    fast.engine = graphs.Recordings()
    weight = fast.blocks[0].attn.qkv.weight
    with torch.no_grad():
        fast(images(1, 3, 16, 16))
        before = weight.clone()
        weight.mul_(2)
        try:
            with pytest.raises(ValueError, match="the weights were changed"):
                fast(images(1, 3, 16, 16))
        finally:
            weight.copy_(before)


def test_what_cannot_be_recorded_says_why() -> None:
    with pytest.raises(routes.Unavailable, match="relative positions"):
        routes.recorded(VITS["relative spline"], images(1, 3, 16, 16), routes.plain)


# ---- on a GPU -----------------------------------------------------------------------------------------------------


@on_gpu
@pytest.mark.parametrize("name", RECORDED)
def test_what_is_replayed_is_what_is_computed(name: str) -> None:
    vit = on_cuda(name)
    fast = routes.recorded(vit, images(1, 3, 40, 40).cuda(), routes.plain)
    with torch.inference_mode():
        for shape in ((2, 3, 48, 40), (1, 3, 16, 56), (3, 3, 37, 51)):
            for seed in range(4):
                x = images(*shape, seed=seed).cuda()
                pairs = (each.forward_layers(x, [0, -1], norm=each.has_norm) for each in (fast, vit))
                for got, want in zip(*pairs, strict=True):
                    assert relative_error(got.tokens, want.tokens) < 1e-5
                    assert relative_error(got.pooled, want.pooled) < 1e-5
                if vit.config.cls:
                    (got,), (want,) = (each.forward_prefix(x, [-1], norm=each.has_norm) for each in (fast, vit))
                    assert relative_error(got.cls, want.cls) < 1e-5
    assert any(fast.engine.recordings.values())


@on_gpu
def test_what_was_returned_is_not_written_over() -> None:
    fast = routes.recorded(on_cuda("cls"), images(1, 3, 40, 40).cuda(), routes.plain)
    with torch.inference_mode():
        each = [fast(images(1, 3, 40, 40, seed=seed).cuda()) for seed in range(5)]
        first = fast(images(1, 3, 40, 40).cuda())
    assert torch.equal(each[0].tokens, first.tokens)
    assert not torch.equal(each[1].tokens, first.tokens)


@on_gpu
def test_rotary_tables_outlive_those_that_are_kept() -> None:
    vit = on_cuda("rotary halves")
    fast = routes.recorded(vit, images(1, 3, 40, 40).cuda(), routes.plain)
    x = images(1, 3, 40, 40).cuda()
    with torch.inference_mode():
        before = fast(x).tokens
        for side in range(1, 60):
            vit(images(1, 3, 8 * side, 16).cuda())
        torch.cuda.empty_cache()
        rubbish = [torch.full((2**20,), torch.nan, device="cuda") for _ in range(64)]
        assert torch.equal(fast(x).tokens, before)
    del rubbish


OPTIMIZE = """
import sys, torch
from tests.helpers import relative_error, tiny_vit
from vitbackbone import optimize
vit, precision = tiny_vit(num_registers=2).cuda(), sys.argv[1]
fast = optimize(vit, precision)
assert fast.fidelity.cosine >= 0.9999, fast.fidelity
mixed = [torch.randn(3, 48, 40).cuda(), torch.randn(3, 16, 56).cuda()]
for batch in (mixed, torch.randn(2, 3, 40, 40).cuda(), torch.randn(5, 3, 24, 40).cuda()):
    with torch.inference_mode():
        for _ in range(3):
            assert relative_error(fast(batch).patches, vit(batch).patches) < (1e-5 if precision == "fp32" else 0.1)
print(fast.runtime)
"""


@on_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_optimize_keeps_its_promise(precision: str) -> None:
    """In a process of its own, without the type checks of the tests, which would be compiled too."""
    command = [sys.executable, "-c", OPTIMIZE, precision]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    assert "CUDA graphs" in run.stdout
