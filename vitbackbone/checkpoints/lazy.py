"""Tensors by name that are read when they are looked up."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


class LazyState(Mapping[str, Tensor]):
    """Tensors by name. `places` says where the tensor of each name is; listing the names reads none."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = places

    @abstractmethod
    def __getitem__(self, key: str) -> Tensor: ...

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Renamed(LazyState):
    """The tensors of a checkpoint under other names: `places` has the old name of each new one."""

    def __init__(self, state: Mapping[str, Any], places: Mapping[str, str]) -> None:
        super().__init__(places)
        self._state = state

    def __getitem__(self, key: str) -> Tensor:
        return self._state[self._places[key]]
