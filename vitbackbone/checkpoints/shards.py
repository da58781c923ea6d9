"""The weights of a directory or repository: in one file, or in shards that an index lists.

A shard is opened, or downloaded, when one of its tensors is looked up.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor

from vitbackbone.checkpoints.lazy import LazyState
from vitbackbone.checkpoints.rules import State
from vitbackbone.checkpoints.tensor_files import read_weights
from vitbackbone.files import SHORT, Record, read_json

FindFile = Callable[[str], Path | None]  # the path of a file of a directory or repository, or None if it has none

# File names in the order of preference: transformers and timm, then OpenCLIP. A name may have a variant: model.fp16.…
STEMS = ("model", "pytorch_model", "open_clip_model", "open_clip_pytorch_model")
SUFFIXES = {"model": ".safetensors", "open_clip_model": ".safetensors"}
VARIANTS = ("", "fp32", "fp16", "bf16", "non_ema", "ema")


class Index(Record):
    """The contents of an index such as `model.safetensors.index.json`: which file has which tensor."""

    weight_map: Annotated[dict[str, str], Field(min_length=1)]


def read_directory(name: str, find: FindFile) -> State:
    """Return the tensors of a directory or repository. Safetensors come first in each format, and one file before
    shards.

    Raises `FileNotFoundError` if it has no weights, and the errors of `read_weights`.
    """
    for variant in VARIANTS:
        for stem in STEMS:
            suffix = SUFFIXES.get(stem, ".bin")
            file = ".".join(filter(None, (stem, variant))) + suffix
            if whole := find(file):
                return read_weights(whole)
            # transformers puts the variant of an index before its suffix: model.safetensors.index.fp16.json
            if index := find(".".join(filter(None, (f"{stem}{suffix}", "index", variant, "json")))):
                return Shards(index, find)
    raise FileNotFoundError(f"{name} has no model.safetensors, no model.safetensors.index.json, no pytorch_model.bin")


class Shards(LazyState):
    """The tensors of all files that an index names.

    Raises `ValueError` if a file is in another folder than the index. Looking up a tensor raises `ValueError` if its
    file lacks a tensor that the index lists, or has one that the index places elsewhere.
    """

    def __init__(self, index: Path, find: FindFile) -> None:
        super().__init__(read_json(index, Index).weight_map)
        self._index, self._find = index, find
        self._open: dict[str, State] = {}
        for name in set(self._places.values()):
            if Path(name).name != name or name in ("", "..") or "\\" in name or "\0" in name:
                raise ValueError(f"{index} has {SHORT.repr(name)} in weight_map; want the name of a file beside it")

    def __getitem__(self, key: str) -> Tensor:
        name = self._places[key]
        if name not in self._open:
            self._open[name] = self._read(name)
        return self._open[name][key]

    def _read(self, name: str) -> State:
        index = self._index
        file = self._find(name)
        if file is None:
            raise FileNotFoundError(f"{index.parent} lacks {name}, which {index.name} names")
        # Links are followed: in the Hub's cache, these files and the index are links into one other folder
        if file.resolve().parent not in (index.parent.resolve(), index.resolve().parent):
            raise ValueError(
                f"{index} has {SHORT.repr(name)} in weight_map, a link out of its folder, to {file.resolve()}"
            )
        tensors = read_weights(file)
        if lost := sorted(key for key, place in self._places.items() if place == name and key not in tensors):
            raise ValueError(f"{file} lacks {lost[0]}, which {index.name} says it has")
        if twice := sorted(key for key in tensors if self._places.get(key, name) != name):
            raise ValueError(f"{file} has {twice[0]}, which {index.name} says that {self._places[twice[0]]} has")
        return tensors
