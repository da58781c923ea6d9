"""V-JEPA 2 and 2.1 equal transformers and the paper, for clips of any number of frames and for images."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers import randomise, relative_error
from tests.oracles.cases import LIMIT, Case, Size, check_parity
from tests.oracles.clips import CLIP_CASES, PUBLISHED, TAPS
from vitbackbone import ViT, ViTConfig, optimize
from vitbackbone.model import Rotary

each = pytest.mark.parametrize("case", CLIP_CASES, ids=lambda case: case.name)


def clips(frames: int, size: Size, batch: int = 2) -> Tensor:
    return torch.randn(batch, frames, 3, *size, generator=torch.Generator().manual_seed(frames))


def whole(x: Tensor, case: Case, tubelet: int) -> Tensor:
    """Fill clips with zeros at the right and bottom, and with their last frame."""
    h, w = x.shape[3:]
    x = F.pad(x, (0, -w % case.multiple, 0, -h % case.multiple))
    return torch.cat([x, *[x[:, -1:]] * (-x.shape[1] % tubelet)], dim=1)


@each
def test_images_are_upstreams(case: Case, tmp_path: Path) -> None:
    check_parity(case, tmp_path, case.sizes[2:])


@each
@pytest.mark.parametrize(
    "frames", [pytest.param(1, marks=pytest.mark.slow), 5, pytest.param(8, marks=pytest.mark.slow)]
)
def test_clips_are_upstreams(case: Case, frames: int, tmp_path: Path) -> None:
    model = case.model()
    case.save(model, tmp_path)
    ours = case.load(tmp_path, case.policy)
    spec = ours.spec
    for size in case.sizes[2:4]:
        x = clips(frames, size)
        with torch.inference_mode():
            want = case.run(model, whole(x, case, spec.tubelet), list(range(spec.depth)))
            got, raw = ours(x), ours.forward_layers(x, range(spec.depth), norm=False)
        h, w = (-(-side // case.multiple) for side in size)
        assert got.patches.shape == (2, spec.dim, -(-frames // spec.tubelet), h, w)
        assert relative_error(got.tokens, want.tokens) <= LIMIT
        assert relative_error(got.pooled, want.pooled) <= LIMIT
        assert max(relative_error(each.tokens, want.layers[i]) for i, each in enumerate(raw)) <= LIMIT


def test_layers_have_norms_of_their_own(tmp_path: Path) -> None:
    """V-JEPA 2.1 returns four blocks, each with a norm."""
    model = PUBLISHED.model()
    PUBLISHED.save(model, tmp_path)
    ours, x = PUBLISHED.load(tmp_path, "native"), clips(4, (48, 64))
    with torch.inference_mode():
        _, _, normed = model(x)
        for layer, features in zip(TAPS, ours.forward_layers(x, TAPS), strict=True):
            assert relative_error(features.tokens, normed[layer]) <= LIMIT


# ---- the contract of clips ----------------------------------------------------------------------------------------

CONFIG = ViTConfig(
    **{"image_size": (32, 32), "patch_size": 8, "dim": 24, "depth": 2, "num_heads": 2, "mlp_dim": 48, "tubelet": 2},
    **{"position": "none", "rotary": Rotary(100.0, "index", "halves", time=True), "num_registers": 2},
)


def test_a_step_of_time_is_a_map() -> None:
    vit, x = randomise(ViT(CONFIG)), clips(5, (30, 43))
    features = vit(x)
    assert features.patches.shape == (2, 24, 3, 4, 6)
    assert features.grid == (4, 6)
    assert features.geometry.shape == (3, 4, 6)
    assert features.geometry.box(0, 3, 5)[0] == 40
    assert features.tokens.shape == (2, 72, 24)
    step = features.step(-1)
    assert torch.equal(step.patches, features.patches[:, :, 2])
    assert torch.equal(step.pooled, features.pooled)
    assert torch.equal(features.image(1).patches, features.patches[1:])
    with pytest.raises(IndexError, match="step 3 of clips with 3 steps"):
        features.step(3)
    with pytest.raises(ValueError, match="features of images"):
        vit(x[:, 0]).step(0)


def test_attention_over_a_clip() -> None:
    vit, x = randomise(ViT(CONFIG)), clips(4, (16, 24))
    (map_,) = vit.attention(x, [1])
    assert map_.weights.shape == (2, 2, 15, 15)
    assert map_.cls_to_patches.shape == (2, 2, 2, 2, 3)
    torch.testing.assert_close(map_.weights.sum(dim=-1), torch.ones(2, 2, 15))
    assert relative_error(vit.forward_prefix(x, [1])[0].cls, vit(x).cls) <= LIMIT


def test_other_backbones_refuse_clips() -> None:
    vit = ViT(ViTConfig(image_size=(32, 32), patch_size=8, dim=24, depth=1, num_heads=2, mlp_dim=48))
    with pytest.raises(ValueError, match=r"has shape \(2, 4, 3, 16, 16\); want a float tensor \(B, 3, H, W\)"):
        vit(clips(4, (16, 16)))
    video = ViT(CONFIG)
    with pytest.raises(ValueError, match=r"clips \(B, T, 3, H, W\)"):
        video(torch.zeros(2, 4, 4, 16, 16))


def test_fast_paths_run_clips_or_refuse() -> None:
    vit, x = randomise(ViT(CONFIG)), clips(4, (32, 32))
    fast = optimize(vit, sample=None)
    with torch.inference_mode():
        assert relative_error(fast(x).patches, vit(x).patches) <= LIMIT
    with pytest.raises(ValueError, match="takes clips"):
        optimize(vit, engine="openvino")


EXPORT = """
import torch
from tests.helpers import randomise, relative_error
from tests.parity.test_clips import CONFIG, LIMIT, ViT, clips

vit, x = randomise(ViT(CONFIG)), clips(4, (32, 40), batch=2)
batch = torch.export.Dim("batch", min=2, max=64)
height, width = (8 * torch.export.Dim(name, min=2, max=64) for name in ("h", "w"))
program = torch.export.export(vit, (x,), dynamic_shapes=({0: batch, 3: height, 4: width},))
for other in (clips(4, (32, 40), batch=2), clips(4, (16, 48), batch=3)):
    got = program.module()(other)
    assert got.geometry.shape == (2, other.shape[3] // 8, other.shape[4] // 8), got.geometry
    assert relative_error(got.patches, vit(other).patches) <= LIMIT
"""


@pytest.mark.slow
def test_clips_are_exported() -> None:
    """In a process of its own, because the tracer would follow the type checks of the tests too."""
    result = subprocess.run([sys.executable, "-c", EXPORT], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


ONNX = """
import sys
import onnxruntime
import torch
from torch import nn
from tests.helpers import randomise, relative_error
from tests.parity.test_clips import CONFIG, LIMIT, ViT, clips

class Outputs(nn.Module):
    def __init__(self, vit):
        super().__init__()
        self.vit = vit

    def forward(self, clip):
        features = self.vit(clip)
        return features.patches, features.pooled

vit = randomise(ViT(CONFIG))
batch = torch.export.Dim("batch", min=2, max=64)
steps = 2 * torch.export.Dim("steps", min=2, max=64)
height, width = (8 * torch.export.Dim(name, min=2, max=64) for name in ("h", "w"))
axes = {0: batch, 1: steps, 3: height, 4: width}
program = torch.export.export(Outputs(vit), (clips(4, (32, 40)),), dynamic_shapes=(axes,))
torch.onnx.export(program, dynamo=True).save(sys.argv[1])
session = onnxruntime.InferenceSession(sys.argv[1])
for other in (clips(4, (32, 40)), clips(8, (16, 48), batch=3), clips(10, (64, 24))):
    with torch.inference_mode():
        want = vit(other)
    patches, pooled = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    assert relative_error(torch.from_numpy(patches), want.patches) <= LIMIT
    assert relative_error(torch.from_numpy(pooled), want.pooled) <= LIMIT
    assert relative_error(program.module()(other)[0], want.patches) <= LIMIT
"""


@pytest.mark.slow
def test_clips_of_any_number_of_frames_run_in_onnx_runtime(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ONNX, str(tmp_path / "clips.onnx")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
