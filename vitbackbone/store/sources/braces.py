"""Expand the braces of shell and WebDataset patterns: `shard-{000000..000099}.tar`, `{train,val}/{0..8..2}.zip`."""

import re
from collections.abc import Iterator
from itertools import islice

MOST = 1_000_000  # names of one pattern

_GROUP = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])")


def has_braces(pattern: str) -> bool:
    """Tell whether a pattern has a group in braces that stands for several texts."""
    return any(_choices(found[1]) is not None for found in _GROUP.finditer(pattern))


def expand_braces(pattern: str) -> list[str]:
    """Return the names of a pattern in the order that it gives. Raises `ValueError` on more than a million."""
    names = list(islice(_expand(pattern), MOST + 1))
    if len(names) > MOST:
        raise ValueError(f"{pattern} stands for more than {MOST} names")
    return names


def _expand(pattern: str) -> Iterator[str]:
    for found in _GROUP.finditer(pattern):  # the first innermost group that stands for several texts
        choices = _choices(found[1])
        if choices is not None:
            for choice in choices:
                yield from _expand(pattern[: found.start()] + choice + pattern[found.end() :])
            return
    yield pattern


def _choices(group: str) -> "Iterator[str] | None":
    """Yield the texts of a group; None if it is plain text, such as `{a}`."""
    if numbers := _NUMBERS.fullmatch(group):
        first, last, step = numbers.groups()
        padded = any(re.match(r"-?0\d", end) for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        stride = max(1, abs(int(step or 1)))
        forward = int(first) <= int(last)
        span = range(int(first), int(last) + 1, stride) if forward else range(int(first), int(last) - 1, -stride)
        return (f"{number:0{width}}" for number in span)
    if letters := _LETTERS.fullmatch(group):
        first, last = map(ord, letters.groups())
        return map(chr, range(first, last + 1) if first <= last else range(first, last - 1, -1))
    return iter(group.split(",")) if "," in group else None
