"""Grids of parameters: the quick tests run a sample of them."""

from collections.abc import Sequence
from itertools import product
from random import Random

import pytest


def grid(*axes: Sequence[object], rounds: int = 2) -> list[object]:
    """Return every combination of the axes' values, and mark all but a seeded sample as slow.

    `rounds`: how often each value of the longest axis is in the sample. The values of the others are in it as often or
    more.
    """
    random = Random(0)
    quick: set[tuple[int, ...]] = set()
    for _ in range(rounds):
        orders = [random.sample(range(len(axis)), len(axis)) for axis in axes]
        quick |= {tuple(order[i % len(order)] for order in orders) for i in range(max(map(len, axes)))}
    return [
        pytest.param(
            *(axis[i] for axis, i in zip(axes, place, strict=True)), marks=() if place in quick else pytest.mark.slow
        )
        for place in product(*(range(len(axis)) for axis in axes))
    ]
