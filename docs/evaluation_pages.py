"""The pages of the protocols of `vitbackbone evaluate`, made from their records."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write(folder: Path) -> None:
    """Write a page for each protocol into `folder`."""
    from vitbackbone.evaluation import PROTOCOLS

    folder.mkdir(exist_ok=True)
    for name in PROTOCOLS:
        path, text = folder / f"{name}.md", page(name)
        if not path.exists() or path.read_text() != text:  # Sphinx builds a page again if its file is newer
            path.write_text(text)


def page(name: str) -> str:
    """Return the page of a protocol: what it does, its data, the settings of each variant, traps and figures."""
    from vitbackbone.evaluation import find_layout, variants

    found = variants(name)
    first = found[0]
    data = " ".join(f"--data {each}=DIR" for each in (first.datasets[0], *first.also))
    parts = [f"# {name}\n", f"{first.summary}\n"]
    parts += ["```text", f"vitbackbone evaluate {name} {data} --model MODEL --out results/", "```\n"]
    parts += ["## Data\n", "Read in place, in the layout that it is distributed in.\n"]
    rows = []
    for each in dict.fromkeys(d for p in found for d in (*p.datasets, *p.also, *p.optional)):
        about = find_layout(each)
        counts = ", ".join(f"{count:,} {what}" for what, count in about.official.items())
        rows.append((f"`{each}`", about.title, f"`{about.tree}`", counts))
    parts += [table(["name", "dataset", "layout", "official counts"], rows)]
    parts += ["## Settings\n", "Every setting can be changed with `--set KEY=VALUE`.\n"]
    for each in found:
        parts += [f"### Variant {each.variant}\n", f"Source: {each.source}.\n"]
        settings = [(f"`{s.key}`", f"`{shown(s.value)}`", s.meaning, s.source) for s in each.settings()]
        parts += [table(["setting", "value", "meaning", "source"], settings)]
    traps = dict.fromkeys(trap for each in found for trap in each.traps)
    if traps:
        parts += ["## Traps\n", *(f"- {trap}" for trap in traps), ""]
    return "\n".join([*parts, published(name)])


def published(name: str) -> str:
    """Return the table of a protocol's published figures, and nothing if there are none."""
    from vitbackbone.evaluation import figures

    rows = [
        (each.model, each.dataset, each.variant, each.metric, f"{each.value:g}", each.source)
        for each in figures()
        if each.protocol == name
    ]
    header = ["model", "dataset", "variant", "metric", "figure", "source"]
    return f"## Published figures\n\n{table(header, rows)}" if rows else ""


def shown(value: Any) -> str:
    """Return a setting's value as `--set` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(shown, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table. A bar in a cell stays in its cell."""
    cells = [list(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    lines.insert(1, "| --- " * len(cells[0]) + "|")
    return "\n".join(lines) + "\n"
