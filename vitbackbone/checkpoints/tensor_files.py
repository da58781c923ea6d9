"""Tensors out of files that anyone may have written: safetensors, NumPy's .npz, and torch's own without their code.

A file is refused before it is read if it claims more numbers than it can hold.
"""

import math
import zipfile
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from vitbackbone.files import SHORT

INFLATED = 20  # times its own size that an .npz may become: trained weights shrink to no less than a half
ALWAYS = 1 << 28  # bytes that it may become whatever its size


def read_weights(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors` file; of a `.npz` one, as Flax's models come; or of a `.pth`, `.pt`,
    `.bin` or `.tar` one, read with `weights_only=True`, at its top level or under `model` or `state_dict`.

    Raises `OSError` if there is no such file or it cannot be read, and `ValueError` if it is damaged, claims more
    numbers than it holds, contains pickled code, or is no state dict. Each names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}" + ", which is a folder" * path.is_dir())
    if path.suffix not in READERS:
        raise ValueError(f"{path}: want a .safetensors file, or .npz, .pth, .pt or .bin")
    read, trouble = READERS[path.suffix]
    try:
        state = read(path)
    except (PermissionError, FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # readers fail on damaged bytes with whatever these lead them to
        raise ValueError(f"{path} {trouble} ({_first_line(error)})") from error
    return _state_dict(path, state)


def _read_safetensors(path: Path) -> Any:
    return load_file(path)  # checks lengths and offsets itself


def _read_npz(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        whole = sum(member.file_size for member in archive.infolist())
        if whole > max(INFLATED * path.stat().st_size, ALWAYS):
            raise ValueError(f"it inflates to {whole:,} bytes")
        for member in archive.infolist():
            _check_array(archive, member)
    with np.load(path, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def _check_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise `ValueError` unless the header of an array speaks of plain numbers that fill the member."""
    name = SHORT.repr(member.filename)
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f"{name} is an array of version {version}")
        shape, _, dtype = read(file)
        if dtype.kind not in "fiub":
            raise ValueError(f"{name} holds {dtype}, no numbers")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
            raise ValueError(f"{name} claims the shape {shape}, which its length does not have")


def _read_torch(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\3\4"  # by which torch tells its formats apart
    if zipped:
        with zipfile.ZipFile(path) as archive:
            whole = sum(member.file_size for member in archive.infolist())
        if whole > path.stat().st_size:  # torch compresses nothing
            raise ValueError(f"it inflates to {whole:,} bytes")
    return torch.load(path, map_location="cpu", weights_only=True)


def _state_dict(path: Path, state: Any) -> dict[str, Tensor]:
    """Return the names and tensors of what was read. Raises `ValueError` if it is something else."""
    for wrapper in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    plain = isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())
    if not plain or not all(isinstance(key, str) for key in state):
        found = f"the names {SHORT.repr(list(state))}" if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"{path} holds {found}; want a state dict, names to tensors, or one under model or state_dict")
    for key, tensor in state.items():
        if tensor.device.type != "cpu":
            raise ValueError(f"{path} holds {SHORT.repr(key)} without its numbers (on {tensor.device})")
        # One number may be spread over a large shape
        if tensor.layout == torch.strided and tensor.nbytes > tensor.untyped_storage().nbytes():
            claim = f"the shape {tuple(tensor.shape)} of {SHORT.repr(key)}"
            raise ValueError(f"{path} claims {claim}, for which it has {tensor.untyped_storage().nbytes():,} bytes")
    return dict(state)


def _first_line(error: Exception) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else f"{text[:196]} ..."


_TORCH = (
    "could not be read as plain tensors: it is damaged, or holds pickled code, which is never run. Convert it to "
    "safetensors where you trust it."
)
READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    ".safetensors": (_read_safetensors, "is not a whole safetensors file; download it again"),
    ".npz": (_read_npz, "is not a whole .npz of plain arrays; download it again"),
    **dict.fromkeys((".pth", ".pt", ".bin", ".tar"), (_read_torch, _TORCH)),  # .pth.tar is torch's file, too
}
