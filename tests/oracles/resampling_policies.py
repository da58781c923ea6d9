"""The policies by which libraries resample tables of positions, as oracles.

The oracle is timm at the new size, with its tables resampled beforehand by the formula of the implementation.
"""

import math
from collections.abc import Callable

import numpy as np
import timm
import torch
from scipy.interpolate import RectBivariateSpline
from torch import Tensor, nn
from torch.nn import functional as F

from tests.oracles.cases import timm_model
from vitbackbone.checkpoints.zoo import ZOO

Formula = Callable[[Tensor, tuple[int, int]], Tensor]  # (1, D, h, w) and the new grid
ABSOLUTE: dict[str, Formula] = {
    "dino, dinov2": lambda t, g: F.interpolate(
        t, scale_factor=((g[0] + 0.1) / t.shape[2], (g[1] + 0.1) / t.shape[3]), mode="bicubic"
    ),
    "size": lambda t, g: F.interpolate(t, size=g, mode="bicubic", align_corners=False),
    "antialiased": lambda t, g: F.interpolate(t, size=g, mode="bicubic", align_corners=False, antialias=True),
    "bilinear, antialiased": lambda t, g: F.interpolate(t, size=g, mode="bilinear", antialias=True),
}
#    timm's name                                    native          hf
POLICIES = {
    "vit_tiny_patch16_224.augreg_in21k": ("antialiased", "size"),
    "deit_tiny_patch16_224.fb_in1k": ("size", "size"),
    "deit_tiny_distilled_patch16_224.fb_in1k": ("size", "size"),
    "deit3_small_patch16_224.fb_in1k": ("size", "size"),
    "vit_base_patch16_224.mae": ("size", "size"),
    "vit_small_patch16_224.dino": ("dino, dinov2", "size"),
    "vit_small_patch14_dinov2.lvd142m": ("dino, dinov2", "size"),
    "vit_small_patch14_reg4_dinov2.lvd142m": ("antialiased", "antialiased"),
    "vit_base_patch14_reg1_tipsv2.webli": ("bilinear, antialiased", "bilinear, antialiased"),
    "vit_base_patch32_clip_quickgelu_224.openai": ("antialiased", "size"),
    "vit_base_patch16_siglip_224.webli": ("antialiased", "size"),
    "eva02_tiny_patch14_224.mim_in22k": ("size", "size"),
    "beit_base_patch16_224.in22k_ft_in22k_in1k": ("spline", "bilinear"),
}


def spline(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """BEiT's: (2H-1, 2W-1) places in geometric progression, a bicubic spline through them."""

    def places(old: int, new: int) -> np.ndarray:
        low, high = 1.01, 1.5
        while high - low > 1e-6:
            q = (low + high) / 2
            low, high = (low, q) if sum(q**i for i in range(old // 2)) > new // 2 else (q, high)
        side = np.cumsum([q**i for i in range(old // 2)])
        return np.concatenate([-side[::-1], [0], side])

    old = [round(math.sqrt(len(table) - 3))] * 2
    new = [2 * side - 1 for side in grid]
    y, x = (places(a, b) for a, b in zip(old, new, strict=True))
    at = [np.arange(-(side // 2), side // 2 + 1) for side in new]
    maps = [RectBivariateSpline(y, x, column.reshape(old).numpy())(*at) for column in table[:-3].T]
    return torch.cat([torch.tensor(np.stack(maps, -1).reshape(-1, table.shape[1])).float(), table[-3:]])


def bilinear(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """transformers': (2H-1, 2W-1) evenly spaced places."""
    side = round(math.sqrt(len(table) - 3))
    body = table[:-3].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    body = F.interpolate(body, size=[2 * s - 1 for s in grid], mode="bilinear")
    return torch.cat([body.permute(0, 2, 3, 1).flatten(0, 2), table[-3:]])


def timm_at(name: str, size: tuple[int, int], formula: str) -> nn.Module:
    """timm's model for one size, its tables by a formula."""
    model = timm_model(name)
    state = dict(model.state_dict())
    patch = ZOO[name].config.patch_size
    grid = (size[0] // patch, size[1] // patch)
    if "pos_embed" in state:
        table = state["pos_embed"]
        prefix = table.shape[1] - math.isqrt(table.shape[1]) ** 2
        side = math.isqrt(table.shape[1])
        body = table[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        body = ABSOLUTE[formula](body, grid).permute(0, 2, 3, 1).flatten(1, 2)
        state["pos_embed"] = torch.cat([table[:, :prefix], body], dim=1)
    for key in [key for key in state if key.endswith("relative_position_bias_table")]:
        state[key] = {"spline": spline, "bilinear": bilinear}[formula](state[key], grid)
    classes = ZOO[name].config.projection_dim or ZOO[name].num_classes
    at = timm.create_model(name.split(".")[0], pretrained=False, img_size=size, num_classes=classes)
    at.load_state_dict(state)
    return at.eval()
