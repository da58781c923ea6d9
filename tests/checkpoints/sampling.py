"""Grids of parameters: the quick suite runs a covering sample, and the whole suite runs all."""

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from itertools import product
from typing import Any

import pytest


def covering(*axes: Sequence[Any], quick: Collection[Any] | None = None) -> list[Any]:
    """Return all combinations, marked slow but for a sample: each value of the first axis once, or those in `quick`,
    while the values of the other axes take turns."""
    chosen = [n for n, value in enumerate(axes[0]) if quick is None or value in quick]
    kept = {(n, *(turn % len(axis) for axis in axes[1:])) for turn, n in enumerate(chosen)}
    return [
        pytest.param(
            *(axis[n] for axis, n in zip(axes, place, strict=True)),
            marks=() if place in kept else pytest.mark.slow,
            id="-".join(_text(axis[n]) for axis, n in zip(axes, place, strict=True)),
        )
        for place in product(*map(range, map(len, axes)))
    ]


def first_of_each(values: Iterable[Any], kind: Callable[[Any], Hashable]) -> list[Any]:
    """Return the first value of each kind."""
    found: dict[Hashable, Any] = {}
    for value in values:
        found.setdefault(kind(value), value)
    return list(found.values())


def _text(value: object) -> str:
    return str(value).removeprefix("torch.")
