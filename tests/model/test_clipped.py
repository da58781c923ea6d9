"""Linear layers that clamp: written out by hand, in OpenVINO, and refused where no kernel clamps."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers import TINY, relative_error, tiny_vit
from vitbackbone import ViT
from vitbackbone.checkpoints.export import export_weights
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.rules import bind, convert
from vitbackbone.model import ClippedLinear
from vitbackbone.runtime.openvino import OpenVinoBackbone
from vitbackbone.runtime.routes import Unavailable, int8, packed, unpacked


@pytest.fixture
def vit() -> ViT:
    made = tiny_vit(clipped=True, mlp="geglu_tanh")
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, ClippedLinear):
                count = len(module.widths)
                module.limits.copy_(torch.tensor([[-1.0], [1.2], [-1.5], [1.4]]) + torch.arange(count) / 10)
    return made


def test_each_part_has_its_own_limits() -> None:
    linear = ClippedLinear(4, [2, 3], bias=True).requires_grad_(False)
    linear.limits.copy_(torch.tensor([[-0.5, -1.0], [0.5, 1.0], [-0.1, -0.2], [0.1, 0.3]]))
    x = torch.randn(3, 4)
    first = F.linear(x.clamp(-0.5, 0.5), linear.weight[:2], linear.bias[:2]).clamp(-0.1, 0.1)
    second = F.linear(x.clamp(-1.0, 1.0), linear.weight[2:], linear.bias[2:]).clamp(-0.2, 0.3)
    assert torch.equal(linear(x), torch.cat([first, second], dim=1))


def test_without_limits_nothing_is_clamped() -> None:
    clipped, plain = ViT(replace(TINY, clipped=True)).eval(), tiny_vit()
    clipped.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 3, 32, 40)
    with torch.inference_mode():
        assert relative_error(clipped(x).patches, plain(x).patches) < 1e-6


def test_openvino_clamps_too(vit: ViT) -> None:
    x: Tensor = torch.randn(2, 3, 33, 47)
    with torch.inference_mode():
        assert relative_error(OpenVinoBackbone(vit)(x).tokens, vit(x).tokens) < 1e-5


def test_paths_without_a_kernel_that_clamps_say_so(vit: ViT) -> None:
    x = torch.randn(2, 3, 32, 32)
    with pytest.raises(Unavailable, match="ClippedLinear for a linear layer"):
        unpacked(vit, x, dtype=torch.bfloat16)
    with pytest.raises(Unavailable, match="ClippedLinear"):
        int8(vit, x)
    with pytest.raises(ValueError, match="clamps its linear layers"):
        OpenVinoBackbone(vit, "int8", x)
    with torch.inference_mode():
        assert relative_error(packed(vit, x)(x).tokens, vit(x).tokens) < 1e-5


def test_this_packages_file_holds_the_limits(vit: ViT) -> None:
    rules = bind(FORMATS["native"], vit.config)
    again = convert(export_weights(vit, "native"), rules, vit.state_dict())
    assert all(torch.equal(again[key], value) for key, value in vit.state_dict().items())
