"""The rows of the coverage tables, and the page that they make."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["any size", "native size only", "refused"]
OUTCOMES: tuple[Outcome, ...] = ("any size", "native size only", "refused")


@dataclass(frozen=True)
class Row:
    """One architecture or model type."""

    name: str
    family: str  # the library's module
    outcome: Outcome
    sizes: str = ""  # which sizes run without padding
    cls: str = ""  # "CLS", and how many registers
    pooled: int = 0  # width of `pooled`
    levels: str = ""  # number, widths and strides
    reason: str = ""  # why other sizes, or all, are refused


def summary(rows: Sequence[Row]) -> str:
    """Return the counts of the outcomes, as Markdown."""
    counts = Counter(row.outcome for row in rows)
    lines = ["| outcome | architectures | share |", "| --- | ---: | ---: |"]
    for outcome in OUTCOMES:
        lines.append(f"| {outcome} | {counts[outcome]} | {100 * counts[outcome] / max(len(rows), 1):.1f} % |")
    return "\n".join(lines)


def reasons(rows: Sequence[Row]) -> str:
    """Return the reasons of what is refused or runs at one size only, with the names, as Markdown."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.outcome != "any size":
            found.setdefault((row.outcome, row.reason), []).append(f"`{row.name}`")
    return "\n".join(
        f"- {outcome}: {reason}. {len(names)}: {', '.join(names)}" for (outcome, reason), names in sorted(found.items())
    )


def table(rows: Sequence[Row]) -> str:
    """Return one line for each row, as Markdown."""
    lines = [
        "| architecture | family | outcome | sizes without padding | tokens | pooled | levels: widths, strides |",
        "| --- | --- | --- | --- | --- | ---: | --- |",
    ]
    for row in sorted(rows, key=lambda row: (row.family, row.name)):
        cells = (row.name, row.family, row.outcome, row.sizes, row.cls, row.pooled or "", row.levels)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def runs(values: Sequence[int]) -> str:
    """Shorten equal neighbours: 768 x 12, or 64, 128, 256."""
    if len(set(values)) == 1 and len(values) > 1:
        return f"{values[0]} x {len(values)}"
    return ", ".join(map(str, values))
