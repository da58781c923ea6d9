"""The error about a checkpoint that does not fit. It stays short for every checkpoint."""

from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import accumulate, takewhile

from vitbackbone.files import SHORT

MOST_LINES = 12  # faults of one kind that the error spells out, if there is room
LONGEST = 320  # characters of one line
LONGEST_ERROR = 560  # characters of the lines that are spelled out; the counts of the others come on top


class ConversionError(ValueError):
    """A checkpoint and a model that do not fit. The message names keys on both sides, in at most 1000 characters, and
    the prefixes of the other keys."""


class Faults:
    """The faults of a checkpoint by kind. Only the first lines of each kind are kept."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = defaultdict(list)
        self._counts: Counter[str] = Counter()
        self._common: dict[str, str] = {}

    def add(self, name: str, fault: str, detail: str | Callable[[], str] = "") -> None:
        """Note that the key or parameter `name` has a `fault`. `detail` continues the sentence; a function is called
        only if the line is kept."""
        self._counts[fault] += 1
        self._common[fault] = _common_start(self._common.get(fault, name), name)
        if self._counts[fault] <= MOST_LINES:
            self._lines[fault].append(_printable(f"{name}: {fault}{detail() if callable(detail) else detail}"))

    def raise_any(self, opening: str) -> None:
        """Raise one `ConversionError` if there are faults. `opening` is its first line."""
        if not self._counts:
            return
        room, kept = LONGEST_ERROR // max(len(self._lines), 1), []
        for fault, kind in self._lines.items():
            shown = _within(sorted(kind), room)
            kept += shown
            if more := self._counts[fault] - len(shown):
                kept.append(f"and {more:,} more: {fault}{self._begin(fault)}")
        raise ConversionError(f"{opening}:\n  " + "\n  ".join(kept))

    def _begin(self, fault: str) -> str:
        """Say with which prefix all keys of a fault begin, if they have one in common."""
        prefix = self._common[fault].rpartition(".")[0]
        return _printable(f"; all begin with the prefix '{prefix}.'") if prefix else ""


def _common_start(a: str, b: str) -> str:
    return "".join(x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _within(lines: list[str], room: int) -> list[str]:
    """Return the first lines that fit into `room` characters, at least one."""
    lengths = accumulate(map(len, lines))
    return [line for n, (line, length) in enumerate(zip(lines, lengths, strict=True)) if not n or length <= room]


def _printable(line: str) -> str:
    """Cut a long line in the middle and escape control characters: keys come from outside."""
    ends = line if len(line) <= 2 * LONGEST else line[:LONGEST] + line[-LONGEST:]
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in ends)
    if len(line) > LONGEST:
        half = LONGEST // 2
        line = f"{line[:half]} {SHORT.fillvalue} {line[-half:]}"
    return line
