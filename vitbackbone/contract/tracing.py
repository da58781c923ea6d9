"""Helpers for `torch.export` and `torch.compile`, under which sizes are symbols.

No Python branch may depend on a symbol.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.fx.experimental import _config as symbolic_shapes

OBLIVIOUS = "backed_size_oblivious"  # a private setting of torch, which `torch.onnx.export` also sets


def numbers(*sizes: object) -> bool:
    """Return whether all sizes are numbers, and none is a symbol of a tracer."""
    return not any(isinstance(size, torch.SymInt) for size in sizes)


def copied(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Return a contiguous copy. `contiguous` would make tracers specialise on sides of size 1."""
    return x.clone(memory_format=torch.contiguous_format)


def any_size() -> AbstractContextManager[None]:
    """Trace the body for every size of the dynamic dimensions.

    By default, torch specialises sides of size 1, and refuses to export a network for images that may be one patch
    wide. Outside `torch.export` this does nothing.
    """
    if not torch.compiler.is_exporting() or torch.compiler.is_dynamo_compiling():
        return nullcontext()
    return _size_oblivious()


@contextmanager
def _size_oblivious() -> Iterator[None]:
    if not hasattr(symbolic_shapes, OBLIVIOUS):  # without it, torch exports maps of at least two patches a side
        yield
        return
    before = getattr(symbolic_shapes, OBLIVIOUS)
    setattr(symbolic_shapes, OBLIVIOUS, True)
    try:
        yield
    finally:
        setattr(symbolic_shapes, OBLIVIOUS, before)
