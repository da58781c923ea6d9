"""Rotary layouts of other libraries, as orders of the channels of each head.

Ours is: the rows' first channels, the columns' first channels, and then the channels that they turn with in the same
order. Queries and keys get the order alike, so that their products do not change.

Axes: `d` width of a head, `I` width into a linear layer.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitbackbone.checkpoints.rules import Change, Rule, Rules
from vitbackbone.model import ViTConfig

Order = Callable[[int], list[int]]  # from the width of a head to the places of our channels in the other layout


def neighbours_by_column(width: int) -> list[int]:
    """Columns have the first half, rows the second; channels turn with neighbours (Perception Encoder, Llama 4)."""
    half = width // 2
    first = [*range(half, width, 2), *range(0, half, 2)]
    return [*first, *(place + 1 for place in first)]


def halves_by_column(width: int) -> list[int]:
    """Columns have the first half, rows the second; channels turn with those a quarter of the head away (Gemma 4)."""
    quarter = width // 4
    parts = (2, 0, 3, 1)
    return [quarter * part + channel for part in parts for channel in range(quarter)]


def halves_by_row(width: int) -> list[int]:
    """Rows have the first half, columns the second; channels turn with those a quarter of the head away (DA3)."""
    quarter = width // 4
    return [quarter * part + channel for part in (0, 2, 1, 3) for channel in range(quarter)]


def alternating_halves(width: int) -> list[int]:
    """Columns and rows take turns; channels turn with those half a head away (Kimi in transformers)."""
    half = width // 2
    first = [*range(1, half, 2), *range(0, half, 2)]
    return [*first, *(place + half for place in first)]


def alternating_neighbours(width: int) -> list[int]:
    """Columns and rows take turns; channels turn with their neighbours (MoonViT's own files)."""
    first = [*range(2, width, 4), *range(0, width, 4)]
    return [*first, *(place + 1 for place in first)]


def _reorder(config: ViTConfig, order: Order, heads: int) -> tuple[Tensor, Tensor]:
    places = torch.tensor(order(config.head_width))
    whole = (torch.arange(heads)[:, None] * config.head_width + places).flatten()
    return whole, whole.argsort()


def packed(order: Order) -> Callable[[ViTConfig], Change]:
    """Change the order of queries and keys in one layer for queries, keys and values, (3 D, I) or (3 D,)."""

    def make(config: ViTConfig) -> Change:
        there, back = _reorder(config, order, config.num_heads)

        def by(index: Tensor) -> Callable[[Tensor], tuple[Tensor]]:
            def change(whole: Tensor) -> tuple[Tensor]:
                q, k, v = whole.chunk(3)
                return (torch.cat([q[index], k[index], v]),)

            return change

        return Change(by(there), by(back))

    return make


def apart(order: Order) -> Callable[[ViTConfig], Change]:
    """Change the order of queries and keys, and join them with the values."""

    def make(config: ViTConfig) -> Change:
        there, back = _reorder(config, order, config.num_heads)
        there_keys, back_keys = _reorder(config, order, config.kv_heads)
        widths = [config.head_width * heads for heads in (config.num_heads, config.kv_heads, config.kv_heads)]

        def join(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
            return (torch.cat([q[there], k[there_keys], v]),)

        def split(whole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = whole.split(widths)
            return q[back], k[back_keys], v

        return Change(join, split)

    return make


def of_a_head(order: Order, scale: Callable[[ViTConfig], float] = lambda config: 1.0) -> Callable[[ViTConfig], Change]:
    """Change the order of a norm's weights, (d,), and multiply them."""

    def make(config: ViTConfig) -> Change:
        there, back = _reorder(config, order, 1)
        factor = scale(config)
        return Change(lambda weight: (weight[there] * factor,), lambda weight: ((weight / factor)[back],))

    return make


def qkv_in_order(source: str, parts: Sequence[str], target: str, order: Order) -> Rules:
    """Join three linear layers into one, whose queries and keys get another order."""
    return tuple(
        Rule(tuple(f"{source}{part}.{kind}" for part in parts), (f"{target}.qkv.{kind}",), apart(order))
        for kind in ("weight", "bias")
    )
