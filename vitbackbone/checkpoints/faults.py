"""The error about a checkpoint that does not fit, which stays short whatever the checkpoint holds."""

from collections import Counter

from vitbackbone.files import SHORT

MOST_LINES = 20  # faults of one kind that the error spells out
LONGEST = 500  # characters of one line


class ConversionError(ValueError):
    """A checkpoint and a model that do not fit. The message lists the keys on both sides, up to 20 of each kind of
    fault."""


class Faults:
    """The faults of a checkpoint by kind. Only the first lines of each kind are kept."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._counts: Counter[str] = Counter()

    def add(self, name: str, fault: str, detail: str = "") -> None:
        """Note that the key or parameter `name` has a `fault`. `detail` goes on with the sentence."""
        self._counts[fault] += 1
        if self._counts[fault] <= MOST_LINES:
            self._lines.append(_printable(f"{name}: {fault}{detail}"))

    def raise_any(self, opening: str) -> None:
        """Raise one `ConversionError` if there are faults. `opening` is its first line."""
        if not self._lines:
            return
        more = [
            f"and {count - MOST_LINES:,} more: {fault}" for fault, count in self._counts.items() if count > MOST_LINES
        ]
        raise ConversionError(f"{opening}:\n  " + "\n  ".join([*sorted(self._lines), *more]))


def _printable(line: str) -> str:
    """Cut a long line in the middle and escape control characters: keys come from outside."""
    if len(line) > LONGEST:
        half = LONGEST // 2
        line = f"{line[:half]} {SHORT.fillvalue} {line[-half:]}"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
