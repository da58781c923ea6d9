"""Slices of a store's shards, for several runs side by side: slice i of n has the shards i, i + n, i + 2n, ..."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Slice:
    """Slice `index` of `count`, counted from 0. The default is the whole store."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            last = max(self.count, 1) - 1
            slurm = f"; Slurm's --array=0-{last} gives these numbers" if last else ""
            raise ValueError(
                f"slice {self.index}/{self.count}: slices are counted from 0; want 0/{last + 1} to "
                f"{last}/{last + 1}{slurm}"
            )

    @classmethod
    def parse(cls, text: str) -> "Slice":
        """Read "i/n". Raises `ValueError` on any other text."""
        found = re.fullmatch(r"(\d+)/([1-9]\d*)", text)
        if not found:
            raise ValueError(f"{text!r}; want i/n such as 0/3, from 0/n to (n-1)/n")
        return cls(int(found[1]), int(found[2]))

    @property
    def whole(self) -> bool:
        """Whether the slice has all shards."""
        return self.count == 1

    def beside(self, other: "Slice") -> bool:
        """Tell whether two slices have no shard in common."""
        return self.count == other.count and self.index != other.index

    def __contains__(self, shard: int) -> bool:
        return shard % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
