"""How a backbone is run when nothing is to be learned."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def check_device(device: torch.device | str) -> None:
    """Raises `ValueError` on a device that is not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch has both for it
        raise ValueError(f"device={str(device)!r}: {str(error).splitlines()[0]}") from error


@contextmanager
def evaluating(module: object) -> Iterator[None]:
    """Eval mode and no gradients meanwhile; then every sub-module has its own mode back, for a look into the middle of
    a training. What is no `nn.Module` has no mode."""
    parts = list(module.modules()) if isinstance(module, nn.Module) else []
    modes = [part.training for part in parts]
    try:
        for part in parts:
            part.training = False
        with torch.inference_mode():
            yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
