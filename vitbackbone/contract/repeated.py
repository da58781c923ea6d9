"""A sequence that repeats one value, whose length may be a symbol of a tracer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, eq=False, repr=False)
class Repeated(Sequence[T_co], Generic[T_co]):
    """A sequence equal to the tuple `(value,) * times`, which is not built.

    Under a tracer, `times` and the numbers in `value` may be symbols. Then read `value`, because `len` and loops need
    numbers.
    """

    value: T_co
    times: int

    def __len__(self) -> int:
        return int(self.times)

    def __iter__(self) -> Iterator[T_co]:
        return iter((self.value,) * int(self.times))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int) and -self.times <= index < self.times:  # which does not fix a symbol
            return self.value
        return ((self.value,) * int(self.times))[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Repeated):
            return self.times == other.times and (self.value == other.value or not self.times)
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __repr__(self) -> str:
        return f"({self.value},) * {self.times}"

    def __hash__(self) -> int:
        return hash(tuple(self))


def one_value(values: Sequence[object]) -> bool:
    """Return whether all values are equal. Symbols of a tracer cannot be hashed, so this builds no set."""
    return isinstance(values, Repeated) or all(value == values[0] for value in values)
