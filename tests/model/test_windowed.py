"""A ViT in windows is C-RADIO's ViTDet mode: prefix tokens wait, the last block of each group sees the whole image."""

import pytest
import torch
from einops import rearrange
from torch import Tensor

from tests.helpers import relative_error, tiny_vit
from vitbackbone import ViT
from vitbackbone.model import Layout


def by_hand(vit: ViT, images: Tensor, window: int, period: int) -> Tensor:
    """As NVlabs/RADIO, radio/vitdet.py: windows become a batch, and the prefix tokens join again for a global block."""
    x, geometry = vit.embed(images)
    (h, w), ahead = geometry.grid, vit.config.num_prefix
    sides = {"wy": h // window, "wx": w // window, "py": window, "px": window}
    for index, block in enumerate(vit.blocks):
        if index % period == period - 1 or index == vit.config.depth - 1:
            x = block(x, Layout((geometry.grid,)))
            continue
        prefix, patches = x[:, :ahead], x[:, ahead:]
        cut = rearrange(patches, "b (wy py wx px) c -> (b wy wx) (py px) c", **sides)
        cut = block(cut, Layout(((window, window),)))
        del sides["py"], sides["px"]
        patches = rearrange(cut, "(b wy wx) (py px) c -> b (wy py wx px) c", py=window, px=window, **sides)
        sides |= {"py": window, "px": window}
        x = torch.cat([prefix, patches], dim=1)
    return x


@pytest.mark.parametrize(("depth", "num_global"), [(6, 2), (4, 2), (5, 2)])
def test_it_is_upstreams_mode(depth: int, num_global: int) -> None:
    vit = tiny_vit(depth=depth, num_registers=3, final_norm=False)
    images = torch.randn(2, 3, 48, 96, generator=torch.Generator().manual_seed(0))
    windowed = vit.windowed(3, num_global)
    with torch.inference_mode():
        want = by_hand(vit, images, 3, depth // num_global)
        got = windowed(images)
        plain = vit(images)
    assert relative_error(got.tokens, want[:, 4:]) <= 1e-5
    assert relative_error(got.registers, want[:, 1:4]) <= 1e-5
    assert relative_error(got.tokens, plain.tokens) > 1e-3


def test_it_shares_the_parameters_and_takes_any_size() -> None:
    vit = tiny_vit(num_registers=1)
    windowed = vit.windowed(3, num_global=1)
    assert windowed.blocks[0].mlp.fc1.weight is vit.blocks[0].mlp.fc1.weight
    assert windowed.spec.settings != vit.spec.settings
    images = torch.randn(1, 3, 33, 50, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (maps,) = windowed.attention(images, [0])
        assert torch.allclose(maps.weights[:, :, :2, :2], torch.eye(2).expand(1, maps.weights.shape[1], 2, 2))
        assert windowed(images).patches.isfinite().all()


def test_a_network_with_windows_is_refused() -> None:
    with pytest.raises(ValueError, match="of its own"):
        tiny_vit(cls=False, pool="mean", window=3).windowed(3, num_global=1)
    with pytest.raises(ValueError, match="at most half"):
        tiny_vit().windowed(3)
