"""Devices and modes of a backbone that is run for inference."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def check_device(device: torch.device | str) -> None:
    """Raise `ValueError` if this machine has no such device, or if it holds no data, as "meta" does."""
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # torch raises one or the other, depending on the device
        raise ValueError(f"device={str(device)!r}: {str(error).splitlines()[0]}") from error


def device_of(module: object) -> torch.device | None:
    """Return the device of a module's first parameter, or None if it has no parameter or is no `nn.Module`."""
    parameters = module.parameters() if isinstance(module, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), None)


@contextmanager
def evaluating(module: object) -> Iterator[None]:
    """Run the body in eval mode and in inference mode, then give every sub-module its own mode back.

    An object that is not an `nn.Module` has no mode, and is left as it is.
    """
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
