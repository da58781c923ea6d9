"""A sequence of one value that is known before its length is: a traced graph has no Python list with an entry for each
image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, eq=False, repr=False)
class Repeated(Sequence[T_co], Generic[T_co]):
    """`(value,) * count`, equal to that tuple, without making it. Under a tracer `count`, and the numbers in `value`,
    may be symbols; then read `value`, as `len` and a loop want numbers."""

    value: T_co
    count: int  # type: ignore[assignment]  # a Sequence has a method of that name, which nobody calls here

    def __len__(self) -> int:
        return int(self.count)

    def __iter__(self) -> Iterator[T_co]:
        return iter((self.value,) * int(self.count))

    def __getitem__(self, index: Any) -> Any:
        return ((self.value,) * int(self.count))[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Repeated):
            return self.count == other.count and (self.value == other.value or not self.count)
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __repr__(self) -> str:
        return f"({self.value},) * {self.count}"

    def __hash__(self) -> int:
        return hash(tuple(self))


def one_value(values: Sequence[object]) -> bool:
    """Whether all values are equal. Symbols of a tracer have no hash, so a set would not do."""
    return isinstance(values, Repeated) or all(value == values[0] for value in values)
