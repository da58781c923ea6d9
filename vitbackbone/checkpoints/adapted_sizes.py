"""Tables of positions of transformers' image encoders that were trained at another image size."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vitbackbone.checkpoints.rules import ConversionError
from vitbackbone.model import Resampling, resample, resample_line
from vitbackbone.networks import image_size, setting

Grid = tuple[int, int]  # (h, w) in patches
POLICY = Resampling("bicubic", antialias=False)  # of transformers' encoders


def fill_resampled(encoder: nn.Module, settings: Any, trained: nn.Module, trained_settings: Any) -> None:
    """Fill an encoder from one that was trained at another image size. Tables of positions are resampled.

    A token before the patches keeps its position.
    Raises `ConversionError` that names a tensor whose shape differs and that is not a table of positions.
    """
    patch = setting(settings, "patch_size")
    wanted, tensors = encoder.state_dict(), dict(trained.state_dict())
    for name, tensor in tensors.items():
        shape = wanted[name].shape if name in wanted else tensor.shape
        if shape != tensor.shape and not tensor.is_floating_point():  # such as a range of indices
            tensors[name] = wanted[name]
        elif shape != tensor.shape:
            old, new = (_grid(each, patch) for each in (trained_settings, settings))
            resized = None if old is None or new is None else _resized(tensor, shape, old, new)
            if resized is None or resized.shape != shape:
                given, asked = (" x ".join(map(str, each)) for each in (tensor.shape, shape))
                raise ConversionError(
                    f"the checkpoint does not fit:\n  {name} is {given} and {asked} for this image_size, and no rule "
                    "resamples it; load without image_size"
                )
            tensors[name] = resized
    encoder.load_state_dict(tensors, assign=True)


def _grid(settings: Any, patch: int | None) -> Grid | None:
    if patch is None:
        return None
    height, width = image_size(settings)
    return height // patch, width // patch


def _resized(table: Tensor, shape: torch.Size, old: Grid, new: Grid) -> Tensor | None:
    """Return a table for another grid, or None if it does not have the shape of a table of positions."""
    if table.ndim != len(shape):
        return None
    axes = [i for i, (mine, theirs) in enumerate(zip(table.shape, shape, strict=True)) if mine != theirs]
    if len(axes) == 1:
        rows = table.movedim(axes[0], 0)
        resized = _line(rows.flatten(1), shape[axes[0]], old, new)
        return None if resized is None else resized.unflatten(1, rows.shape[1:]).movedim(0, axes[0]).contiguous()
    first = next((i for i in range(table.ndim - 1) if tuple(table.shape[i : i + 2]) == old), None)
    if first is None or tuple(shape[first : first + 2]) != new:
        return None
    rows = table.movedim((first, first + 1), (0, 1))
    resized = resample(rows.flatten(2).flatten(0, 1), old, new, POLICY)
    resized = rearrange(resized, "(h w) d -> h w d", h=new[0]).unflatten(2, rows.shape[2:])
    return resized.movedim((0, 1), (first, first + 1)).contiguous()


def _line(rows: Tensor, count: int, old: Grid, new: Grid) -> Tensor | None:
    """Return rows of positions for another grid: of all patches after at most one token, or of one axis."""
    patches, wanted = old[0] * old[1], new[0] * new[1]
    before = len(rows) - patches
    if before in (0, 1) and count - wanted == before:
        return torch.cat([rows[:before], resample(rows[before:], old, new, POLICY)])
    for mine, theirs in zip(old, new, strict=True):
        if len(rows) == 2 * mine - 1 and count == 2 * theirs - 1:
            return resample_line(rows, theirs)
    return None
