"""Slices of a store's shards, for several runs side by side: slice i of n has the shards i, i + n, i + 2n, ..."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Slice `index` of `count`, from 0."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise ValueError(
                f"shard {self.index}/{self.count}; slices are counted from 0, so want 0/{self.count} to "
                f"{self.count - 1}/{self.count}"
                + (f", which Slurm's --array=0-{self.count - 1} gives" if self.count > 1 else "")
            )

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Of "i/n". Raises `ValueError` on what is none."""
        found = re.fullmatch(r"(\d+)/([1-9]\d*)", text)
        if not found:
            raise ValueError(f"{text!r}; want i/n such as 0/3, from 0/n to (n-1)/n")
        return cls(int(found[1]), int(found[2]))

    @property
    def whole(self) -> bool:
        return self.count == 1

    def beside(self, other: "Part") -> bool:
        """Whether both may run at the same time."""
        return self.count == other.count and self.index != other.index

    def __contains__(self, shard: int) -> bool:
        return shard % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
