"""Helpers for `torch.export` and `torch.compile`, under which sizes are symbols.

No Python branch may depend on a symbol.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from types import ModuleType

import torch
from jaxtyping import Shaped
from torch import Tensor

OBLIVIOUS = "backed_size_oblivious"  # a private setting of torch, which `torch.onnx.export` also sets


def numbers(*sizes: object) -> bool:
    """Return whether all sizes are numbers, and none is a symbol of a tracer."""
    return not any(isinstance(size, torch.SymInt) for size in sizes)


def assume(holds: bool | torch.SymBool) -> None:
    """Tell a tracer that a condition on sizes holds, so that it need not branch on them."""
    torch._check(holds)


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


def _symbolic_shapes() -> ModuleType | None:
    """Return torch's private settings of symbolic shapes, or None if this torch lacks the one that is used here."""
    try:
        settings = import_module("torch.fx.experimental._config")
    except ImportError:
        return None
    return settings if hasattr(settings, OBLIVIOUS) else None


@contextmanager
def _size_oblivious() -> Iterator[None]:
    settings = _symbolic_shapes()
    if settings is None:  # torch then exports maps of at least two patches a side
        yield
        return
    before = getattr(settings, OBLIVIOUS)
    setattr(settings, OBLIVIOUS, True)
    try:
        yield
    finally:
        setattr(settings, OBLIVIOUS, before)
