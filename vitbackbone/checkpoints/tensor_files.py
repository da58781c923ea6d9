"""Reading tensors from files that anyone may have written: safetensors, NumPy's .npz, and torch's files without code.

A file that claims more numbers than it can hold is refused before it is read.
"""

import argparse
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from vitbackbone.checkpoints.lazy import LazyState
from vitbackbone.files import SHORT, parse_json

INFLATED = 20  # how many times its own size an .npz may inflate to; trained weights compress to half at best
ALWAYS = 1 << 28  # bytes that an .npz of any size may inflate to
DEEPEST = 6  # dicts inside each other in a torch file
# What trainers keep beside the weights (torch, PyTorch Lightning, timm)
NO_WEIGHTS = ("optim", "lr_sched", "scheduler", "scaler", "amp", "callbacks", "loops", "hyper_parameters", "rng")
PLAIN_DATA: list[Any] = [argparse.Namespace]  # classes without code of their own that trainers save: the command line
LONGEST_HEADER = 1 << 23  # bytes of a safetensors header: some 80,000 tensors


def read_weights(path: str | PathLike[str]) -> Mapping[str, Any]:
    """Return the tensors of a weights file by name: `.safetensors`, `.npz` (Flax), or one of torch's.

    The tensors of a `.safetensors` file are read when they are looked up. torch's files (`.pth`, `.pt`, `.bin`,
    `.ckpt`, `.tar`) are read with `weights_only=True`. Tensors in dicts inside each other get dotted names:
    `teacher.backbone.cls_token`. Everything else that a trainer saves is left out: numbers, optimisers, schedules.
    Raises `OSError` if the file is missing or cannot be read. Raises `ValueError` if it is damaged, names a tensor
    twice, claims more numbers than it holds, contains pickled code, or is not a state dict. Both errors name the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}" + ", which is a folder" * path.is_dir())
    if path.suffix not in READERS:
        raise ValueError(f"{path}: want a .safetensors file, or .npz, .pth, .pt, .ckpt or .bin")
    read, trouble = READERS[path.suffix]
    try:
        state = read(path)
    except (PermissionError, FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # readers raise all kinds of errors on damaged bytes
        raise ValueError(f"{path} {trouble} ({_first_line(error)})") from error
    return state if isinstance(state, LazyTensors) else _state_dict(path, state)


class LazyTensors(LazyState):
    """The tensors of a `.safetensors` file. Looking one up reads it."""

    def __init__(self, path: Path) -> None:
        _check_header(path)
        self._file = safe_open(path, framework="pt")  # checks lengths and offsets itself
        names = self._file.keys()
        super().__init__({name: name for name in names})

    def __getitem__(self, key: str) -> Tensor:
        return self._file.get_tensor(self._places[key])


def _check_header(path: Path) -> None:
    """Raise `ValueError` if the header is long or names a key twice; `safe_open` would take the last one."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"its header has {length:,} bytes; at most {LONGEST_HEADER:,} are read")
        parse_json(file.read(length), dict, "its header")


def _read_npz(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        whole = sum(member.file_size for member in archive.infolist())
        if whole > max(INFLATED * path.stat().st_size, ALWAYS):
            raise ValueError(f"it inflates to {whole:,} bytes")
        names = [member.filename.removesuffix(".npy") for member in archive.infolist()]
        if len(set(names)) < len(names):
            name, _ = Counter(names).most_common(1)[0]
            raise ValueError(f"it has the array {SHORT.repr(name)} twice")
        for member in archive.infolist():
            _check_array(archive, member)
    with np.load(path, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def _check_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise `ValueError` unless an array's header describes plain numbers that fill the member."""
    name = SHORT.repr(member.filename)
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f"{name} has the format version {version}; want (1, 0) or (2, 0)")
        shape, _, dtype = read(file)
        if dtype.kind not in "fiub":
            raise ValueError(f"{name} holds {dtype}; want numbers")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
            raise ValueError(f"{name} claims the shape {shape}, but has {member.file_size:,} bytes")


def _read_torch(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\3\4"  # torch tells its two formats apart by these bytes
    if zipped:
        with zipfile.ZipFile(path) as archive:
            whole = sum(member.file_size for member in archive.infolist())
        if whole > path.stat().st_size:  # torch compresses nothing
            raise ValueError(f"it inflates to {whole:,} bytes")
    with torch.serialization.safe_globals(PLAIN_DATA):
        return torch.load(path, map_location="cpu", weights_only=True)


def _state_dict(path: Path, state: Any) -> dict[str, Tensor]:
    """Return the names and tensors of a state dict. Raises `ValueError` if `state` is something else."""
    tensors = dict(_tensors(state)) if isinstance(state, Mapping) else {}
    if not tensors:
        found = f"the names {SHORT.repr(list(state))}" if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"{path} holds {found}; want a state dict, names to tensors, or dicts of such")
    for key, tensor in tensors.items():
        if tensor.device.type != "cpu":
            raise ValueError(f"{path} holds {SHORT.repr(key)} without its numbers (on {tensor.device})")
        # A stride of 0 spreads one number over a large shape
        if tensor.layout == torch.strided and tensor.nbytes > tensor.untyped_storage().nbytes():
            claim = f"the shape {tuple(tensor.shape)} of {SHORT.repr(key)}"
            raise ValueError(f"{path} claims {claim}, but has {tensor.untyped_storage().nbytes():,} bytes for it")
    return tensors


def _tensors(tree: Mapping[Any, Any], path: str = "", deep: int = DEEPEST) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of dicts inside each other by their dotted names."""
    for key, value in tree.items():
        if not isinstance(key, str) or (not path and key.startswith(NO_WEIGHTS)):
            continue
        name = f"{path}.{key}" if path else key
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping) and deep:
            yield from _tensors(value, name, deep - 1)


def _first_line(error: Exception) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else f"{text[:196]} ..."


_TORCH = (
    "could not be read as plain tensors: it is damaged, or it holds pickled code, which is never run. Convert it to "
    "safetensors on a machine where you trust it."
)
READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    ".safetensors": (LazyTensors, "is not a whole safetensors file; download it again"),
    ".npz": (_read_npz, "is not a whole .npz of plain arrays; download it again"),
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt", ".tar"), (_read_torch, _TORCH)),  # torch also writes .pth.tar
}
