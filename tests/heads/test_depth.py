"""Linear bins, the loss and the figures of depth, and the example that trains on drawn scenes."""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from heads import attach, create_head, depth_metrics, load_head, scale_invariant_loss
from tests.helpers import randomise, relative_error, tiny_vit
from vitbackbone import load_backbone


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(32, 48), (29, 61), (8, 8)])
@pytest.mark.parametrize(("layers", "indices"), [("last", [3]), ("even4", [0, 1, 2, 3]), ("last4", [0, 1, 2, 3])])
def test_linear_bins_are_dinov2s(size: tuple[int, int], layers: str, indices: list[int]) -> None:
    backbone = tiny_vit(depth=4, num_registers=2)
    head = randomise(create_head("linear_depth", backbone.spec, layers=layers, min_depth=0.5, max_depth=8.0))
    x = random(2, 3, *size)
    with torch.inference_mode():
        found = attach(backbone, {"it": head})(x)["it"]
        maps = []
        for each in backbone.forward_layers(x, indices, norm=False):
            joined = torch.cat([each.patches, each.cls[:, :, None, None] + 0 * each.patches], dim=1)
            maps.append(F.interpolate(joined, scale_factor=4, mode="bilinear"))
        weight, bias = head.linear.weight[:, :, 0, 0], head.linear.bias
        logits = torch.einsum("bdhw,kd->bhwk", torch.cat(maps, dim=1), weight) + bias
        p = torch.relu(logits) + 0.1
        depth = (p / p.sum(dim=3, keepdim=True)) @ torch.linspace(0.5, 8, 256)
        padded = [side * 4 // 4 * 8 for side in each.grid]
        expected = F.interpolate(depth[:, None], padded, mode="bilinear")[:, :, : size[0], : size[1]]
    assert relative_error(found, expected) < 1e-5


def test_the_range_of_the_bins_is_checked() -> None:
    spec = tiny_vit().spec
    for low, high in [(0.0, 10.0), (5.0, 5.0), (6.0, 5.0)]:
        with pytest.raises(ValueError, match=r"want 0 < min < max"):
            create_head("linear_depth", spec, min_depth=low, max_depth=high)


# ---- the loss ------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_known_pixels_and_blind_to_scale_in_part() -> None:
    depth, target = random(2, 1, 5, 6).exp(), random(2, 1, 5, 6, seed=1).exp()
    target[0, 0, :2] = 0
    target[1, 0, 0, 0] = -1
    pairs = [(d, t) for d, t in zip(depth.flatten().tolist(), target.flatten().tolist(), strict=True) if t > 0]
    g = np.array([math.log(d + 0.001) - math.log(t + 0.001) for d, t in pairs])
    expected = math.sqrt(g.var(ddof=1) + 0.15 * g.mean() ** 2)
    assert scale_invariant_loss(depth, target).item() == pytest.approx(expected, rel=1e-5)

    other = torch.where(target > 0, depth, torch.full_like(depth, 1e9)).requires_grad_()
    loss = scale_invariant_loss(other, target)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert not other.grad[target <= 0].any()


def test_the_loss_of_nothing_of_one_pixel_and_of_what_is_right_is_finite() -> None:
    depth = random(1, 1, 3, 3).exp().requires_grad_()
    one = torch.zeros(1, 1, 3, 3)
    one[0, 0, 1, 1] = 2.0
    expected = math.sqrt(0.15) * abs(math.log(depth[0, 0, 1, 1].item() + 0.001) - math.log(2.001))
    for target, value in [(torch.zeros(1, 1, 3, 3), 0.0), (one, expected), (depth.detach().clone(), 0.0)]:
        depth.grad = None
        loss = scale_invariant_loss(depth, target)
        assert loss.item() == pytest.approx(value, abs=1e-5)
        loss.backward()
        assert depth.grad.isfinite().all()


@pytest.mark.parametrize("function", [scale_invariant_loss, depth_metrics])
@pytest.mark.parametrize(
    ("target", "match"),
    [
        (torch.full((1, 1, 3, 3), torch.nan), "target holds NaN or infinity at 9 pixels; want a positive finite depth"),
        (torch.full((1, 1, 3, 3), torch.inf), "NaN or infinity at 9 pixels"),
        (torch.ones(1, 3, 3), r"target has shape \(1, 3, 3\); want the output's shape, \(1, 1, 3, 3\)"),
        (torch.ones(1, 1, 3, 3, dtype=torch.int64), "target is torch.int64"),
    ],
)
def test_targets_that_are_none_are_refused(function: object, target: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        function(torch.ones(1, 1, 3, 3), target)


def test_the_figures() -> None:
    target = torch.tensor([1.0, 2.0, 4.0, 0.0]).view(1, 1, 2, 2)
    depth = torch.tensor([1.2, 2.0, 2.0, 9.0]).view(1, 1, 2, 2)
    found = depth_metrics(depth, target)
    assert found.abs_rel == pytest.approx((0.2 + 0 + 0.5) / 3)
    assert found.rmse == pytest.approx(math.sqrt((0.04 + 0 + 4) / 3))
    assert found.delta1 == pytest.approx(2 / 3)
    assert str(found) == "abs-rel 0.233, rmse 1.160, delta1 66.7%"
    with pytest.raises(ValueError, match="no pixel of target is above 0"):
        depth_metrics(depth, torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="depth is not above 0 at 3 pixels"):
        depth_metrics(-depth, target)


# ---- the example ---------------------------------------------------------------------------------------------------


EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_depth_of_a_scene_is_where_its_rays_meet_it(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = example("scenes", monkeypatch)
    rays = np.array([[[0.0, 0.0, 1.0], [0.1, 0.0, 1.0], [0.0, 0.5, 1.0], [0.6, 0.6, 1.0]]])
    depth, normal = scenes.sphere(rays, np.array([0.0, 0.0, 5.0]), 1.0)
    assert depth[0, 0] == pytest.approx(4)
    assert np.isinf(depth[0, 2:]).all()
    assert normal[0, 0] == pytest.approx([0, 0, -1])
    point = depth[0, 1] * rays[0, 1] - (0, 0, 5)
    assert point @ point == pytest.approx(1)
    assert normal[0, 1] == pytest.approx(point)

    depth, normal = scenes.box(rays, np.array([0.0, 2.0, 5.0]), 1.0)
    assert np.isinf(depth[0, [0, 1, 3]]).all()
    assert depth[0, 2] == pytest.approx(4)  # its front: half as low as it is far
    assert normal[0, 2] == pytest.approx([0, 0, -1])
    depth, normal = scenes.box(rays, np.array([0.0, 3.2, 5.0]), 1.0)
    assert depth[0, 2] == pytest.approx(4.4)  # its top, 2.2 below the eye
    assert normal[0, 2] == pytest.approx([0, -1, 0])


@pytest.mark.parametrize("head", ["linear_depth", "dpt_depth"])
def test_the_example_trains_measures_and_shows(
    head: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--steps", "2", "--batch-size", "2", "--size", "24", "--measured", "3"]
    monkeypatch.setattr(sys, "argv", ["depth.py", "--out", str(tmp_path), "--head", head, *options])
    example("depth", monkeypatch).main()
    names = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert names[:4] == [head, "mean depth", "best constant", "mean at each pixel"]
    assert Image.open(tmp_path / "depth.png").size[0] > 3 * 3 * 24
    assert load_head(tmp_path / "head", load_backbone("nano")).name == head
