"""The precision of what is built."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_default() -> Iterator[None]:
    """Build in float32, whatever torch's default dtype is now. transformers changes it while it builds a model, and so
    do programs that run in bfloat16."""
    dtype = torch.get_default_dtype()
    if dtype == torch.float32:  # the default is one for all threads: leave it alone where nothing is to be done
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
