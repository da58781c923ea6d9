"""The dtype of new modules."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_default() -> Iterator[None]:
    """Create modules and tensors in float32, whatever torch's default dtype is now.

    transformers changes the default while it builds a model, and so do programs that run in bfloat16.
    """
    dtype = torch.get_default_dtype()
    if dtype == torch.float32:  # all threads share the default: do not set it without need
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
