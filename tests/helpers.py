"""Helpers that several test files share: tiny models, full randomisation, the error measure, fixture photos."""

from collections.abc import Container, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vitbackbone import ViT, ViTConfig

TINY = ViTConfig(image_size=(32, 32), patch_size=8, dim=16, depth=3, num_heads=2, mlp_dim=32)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and running statistic, norms and LayerScale among them: a key that is dropped shows. What is not
    saved, such as rotary tables and the zero bias of k, is part of the architecture and stays."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict(keep_vars=True).items():
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(noise.abs() + 0.5)
            else:
                fan_in = tensor[0].numel() if tensor.ndim > 1 and "token" not in name and "pos" not in name else 4
                tensor.copy_(noise / fan_in**0.5 + (1.0 if tensor.ndim == 1 and name.endswith("weight") else 0.0))
    return module.eval()


def tiny_vit(seed: int = 0, **fields: object) -> ViT:
    return randomise(ViT(ViTConfig(**{**vars(TINY), **fields}), name="tiny"), seed)


def cases(names: Iterable[str], quick: Container[str]) -> list[object]:
    """Return the names as parameters, all but the quick ones marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def relative_error(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|"""
    assert a.shape == b.shape, (a.shape, b.shape)
    return ((a - b).abs().max() / b.abs().max()).item()


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture with edges, gradients and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7 + y / 11), np.cos(x / 5), (x // 9 + y // 6) % 2], axis=-1)
    return Image.fromarray(np.uint8(np.clip(127 + 80 * waves + rng.normal(0, 15, waves.shape), 0, 255)))


def save_photo(path: Path, height: int = 40, width: int = 52, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(height, width, seed).save(path)
    return path
