"""Read the pickles that datasets are distributed in, without running anything that they name.

Only numbers, strings, bytes, lists, tuples, dicts and arrays of numbers or strings are built.
"""

import io
import math
import pickle
from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitbackbone.files import read_bytes

LIMIT = 1 << 31  # bytes of a file; a batch of CIFAR has 31 MB
KINDS = "biufcSU"  # kinds of NumPy's dtypes: numbers and strings of fixed length


class _Dtype:
    """A dtype that a pickle describes. NumPy's own `__setstate__` would take any state."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        text = name.decode("latin1") if isinstance(name, bytes) else name
        dtype = np.dtype(text) if isinstance(text, str) else None
        if dtype is None or dtype.kind not in KINDS:
            raise pickle.UnpicklingError(f"it holds an array of dtype {text!r}")
        self.dtype = dtype

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder("<" if order == "<" else ">")

    def read(self, data: Any, shape: tuple[int, ...], order: Any) -> NDArray[Any]:
        raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
        if math.prod(shape) * self.dtype.itemsize != len(raw):
            raise pickle.UnpicklingError(f"it holds {len(raw)} bytes for an array of shape {shape}")
        return np.frombuffer(raw, dtype=self.dtype).reshape(shape, order=order).copy()


class _Array:
    """An array that a pickle describes."""

    def __init__(self, *_: Any) -> None:
        self.array = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _checked(dtype).read(data, shape, "F" if fortran else "C")


def _checked(dtype: Any) -> _Dtype:
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("it holds an array without a dtype")
    return dtype


def _scalar(dtype: Any, data: Any) -> Any:
    return _checked(dtype).read(data, (), "C").item()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """Return an array as protocol 5 writes it."""
    return _checked(dtype).read(data, shape, order)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Return bytes as protocol 2 writes them."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds text in {encoding!r}")
    return text.encode("latin1")


def _no_bytes(*given: Any) -> bytes:
    """Return the bytes of an empty array as protocol 2 writes them."""
    if given:
        raise pickle.UnpicklingError("it makes bytes of something else")
    return b""


def _nothing(*_: Any) -> None:
    """Stand for `numpy.ndarray`, which a pickle names as the class of its arrays and never calls."""


Makers = dict[tuple[str, str], Callable[..., Any]]
PARTS: Makers = {
    ("numpy", "ndarray"): _nothing,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
}
ARRAYS: Makers = {
    (f"numpy.{core}.{module}", name): function
    for core in ("core", "_core")
    for module, name, function in (
        ("multiarray", "_reconstruct", _Array),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _from_buffer),
    )
}
ALLOWED = PARTS | ARRAYS


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return ALLOWED[module, name]


def read_pickle(path: str | PathLike[str]) -> Any:
    """Read a pickle of numbers, strings, lists, tuples, dicts and arrays. Python 2's strings are read as Latin-1.

    Raises `OSError` if the file cannot be read, and `ValueError` if it is damaged or holds anything else.
    """
    data = read_bytes(path, LIMIT)
    try:
        return _plain(_Unpickler(io.BytesIO(data), encoding="latin1").load(), {})
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(
            f"{path} is refused: {error}. Only pickles of numbers, strings, lists, dicts and arrays are read"
        ) from None


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """Return the value with NumPy's arrays. `done` holds finished parts by their id, since parts may be shared."""
    if isinstance(value, _Array):
        return value.array
    if not isinstance(value, dict | list | tuple):
        if isinstance(value, _Dtype) or callable(value):
            raise ValueError("it holds a type")
        return value
    if id(value) not in done:
        if isinstance(value, dict):
            done[id(value)] = {key: _plain(each, done) for key, each in value.items()}
        else:
            done[id(value)] = type(value)(_plain(each, done) for each in value)
    return done[id(value)]
