"""The results as a table in Markdown, HTML and LaTeX: here, paper, difference."""

import html
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vitbackbone.evaluation.datasets import Check, find_layout
from vitbackbone.evaluation.results import Figures, Result, Results
from vitbackbone.files import publish_text

HEADER = ("protocol", "dataset", "metric", "here", "interval", "n", "paper", "difference")
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    each: f"\\{each}" for each in "&%$#_{}"
}


@dataclass(frozen=True)
class Table:
    """The rows of a report, and the lines below them."""

    title: str
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[str, ...]


def tables(results: Results) -> list[Table]:
    """Return a table for each backbone."""
    found: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        found.setdefault((result.model, result.fingerprint), []).append(result)
    return [_table(name, fingerprint, group) for (name, fingerprint), group in found.items()]


def write_report(results: Results, out: Path) -> list[Path]:
    """Write report.md, report.html and report.tex, and return their paths."""
    texts = {"report.md": markdown(results), "report.html": as_html(results), "report.tex": latex(results)}
    for name, text in texts.items():
        publish_text(out / name, text)
    return [out / name for name in texts]


def markdown(results: Results) -> str:
    """Return the report in Markdown."""
    parts = []
    for table in tables(results):
        rows = [[_cell(cell) for cell in row] for row in (HEADER, *table.rows)]
        widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        rows.insert(1, ["-" * width for width in widths])
        parts.append(f"## {_cell(table.title)}\n")
        parts += [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]  # aligned for a terminal
        parts += ["", *(f"- {_cell(line)}" for line in table.lines), ""]
    return "\n".join(parts) if parts else "no results yet\n"


def as_html(results: Results) -> str:
    """Return the report as a page of HTML."""
    parts = ["<!doctype html>", '<meta charset="utf-8">', "<title>vitbackbone evaluate</title>"]
    parts.append("<style>body{font:14px sans-serif;margin:2em}td,th{padding:.3em .8em;text-align:left}</style>")
    for table in tables(results):
        parts += [f"<h2>{html.escape(table.title)}</h2>", "<table>", _html_row("th", HEADER)]
        parts += [_html_row("td", row) for row in table.rows]
        parts += ["</table>", "<ul>", *(f"<li>{html.escape(line)}</li>" for line in table.lines), "</ul>"]
    return "\n".join(parts) + "\n"


def latex(results: Results) -> str:
    """Return the tables in LaTeX, for `booktabs`."""
    parts = []
    for table in tables(results):
        parts += [f"% {_latex(table.title)}", r"\begin{tabular}{" + "l" * len(HEADER) + "}", r"\toprule"]
        parts += [_latex_row(HEADER), r"\midrule", *map(_latex_row, table.rows), r"\bottomrule", r"\end{tabular}"]
        parts += [*(f"% {_latex(line)}" for line in table.lines), ""]
    return "\n".join(parts) + "\n"


def _table(name: str, fingerprint: str, group: Iterable[Result]) -> Table:
    rows, lines = [], []
    for result in group:
        label = f"{result.protocol} ({result.variant})"
        if result.limit is not None:
            lines.append(
                f"{label} on {result.dataset}: --limit {result.limit}, so no published figure stands beside it"
            )
        elif not result.official and find_layout(result.dataset).official:
            lines.append(
                f"{label} on {result.dataset}: not the whole official dataset ({_differing(result)}), so no published "
                "figure stands beside it"
            )
        for each in result.scores:
            if each.main:
                rows.append(_row(label, each))
            if each.published is not None:
                note = f"{label}, {each.metric}: published for {each.published.model} by {each.published.source}"
                lines += [note, *(f"{label}, {each.metric}: {gap}" for gap in each.gaps)]
        lines += [f"{label} on {result.dataset}: {note}" for note in result.notes]
        methods = {each.method for each in result.scores if each.main}
        lines += [f"{label} on {result.dataset}: {method}" for method in sorted(methods)]
        lines += [f"{label} on {result.dataset}: the head {key} is in {folder}" for key, folder in result.heads.items()]
    return Table(f"{name} ({fingerprint[:12]})", tuple(rows), tuple(dict.fromkeys(lines)))


def _differing(result: Result) -> str:
    """Return the counts of a result's datasets that are not the official ones."""
    checks = [Check(find_layout(name), Path(), counts) for name, counts in result.counts.items()]
    found = [(what, *counts) for check in checks for what, counts in check.differing.items()]
    return ", ".join(f"{here:,} of {official:,} {what}" for what, here, official in found)


def _row(label: str, each: Figures) -> tuple[str, ...]:
    digits = 1 if each.unit == "%" else 3
    interval = "" if each.interval is None else f"{each.interval[0]:.{digits}f} to {each.interval[1]:.{digits}f}"
    paper = "" if each.published is None else f"{each.published.value:.{digits}f}"
    difference = "" if each.difference is None else f"{each.difference:+.{digits}f}"
    here = f"{each.value:.{digits}f}" + (f" {each.unit}" if each.unit else "")
    return label, each.dataset, each.metric, here, interval, f"{each.n} {each.of}", paper, difference


def _cell(text: str) -> str:
    """Return a text that cannot leave its cell or become markup."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|").replace("`", "'")


def _html_row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _latex(text: str) -> str:
    return "".join(LATEX.get(each, each) for each in " ".join(text.split()))


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"
