"""What differs where `torch.export` or `torch.compile` follows a batch through a network: sizes are symbols, and no
branch of Python may depend on them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.fx.experimental import _config as symbolic_shapes

OBLIVIOUS = "backed_size_oblivious"  # of torch's private settings; `torch.onnx.export` sets it too


def numbers(*sizes: object) -> bool:
    """Whether all sizes are numbers, and none is a symbol of `torch.export`."""
    return not any(isinstance(size, torch.SymInt) for size in sizes)


def any_size() -> AbstractContextManager[None]:
    """Let `torch.export` follow what runs within for every size of its dynamic dimensions.

    Without it torch asks of many a tensor whether a side of its map is 1, and would refuse to export a network for
    images that may be one patch wide. Outside `torch.export` it does nothing.
    """
    if not torch.compiler.is_exporting() or torch.compiler.is_dynamo_compiling():
        return nullcontext()
    return _size_oblivious()


@contextmanager
def _size_oblivious() -> Iterator[None]:
    if not hasattr(symbolic_shapes, OBLIVIOUS):  # a torch that has none exports for maps of two patches a side or more
        yield
        return
    before = getattr(symbolic_shapes, OBLIVIOUS)
    setattr(symbolic_shapes, OBLIVIOUS, True)
    try:
        yield
    finally:
        setattr(symbolic_shapes, OBLIVIOUS, before)
