"""The pages and drawings made from the code: the models, the options of every command, and the house."""

import ast
import html
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parent.parent
ROOMS = {  # each package: what is in it, and its column and row in the drawing; it imports from the rows below its own
    "cli": ("the command", 1.5, 0),
    "evaluation": ("the papers' protocols", 1, 1),
    "heads": ("features to results", 1, 2),
    "sklearn": ("ImageFeatures", 3, 2),
    "store": ("features on disk", 0, 2),
    "inspection": ("costs and pictures", 2, 2),
    "runtime": ("the same features, sooner", 0, 3),
    "checkpoints": ("names and files to weights", 2, 3),
    "networks": ("other libraries' networks", 2, 4),
    "model": ("the Vision Transformer", 1.5, 5),
    "contract": ("what a backbone returns", 1.5, 6),
    "images": ("files to tensors", 1.5, 7),
    "files": ("whole files or none", 1.5, 8),
}
Edge = tuple[str, str]  # the importing package and the imported one
Point = tuple[float, float]
COLUMN, ROW, BOX, LANE = 200, 74, (180, 44), 18  # pixels; LANE separates arrows that pass outside
LEFT, TOP = 132, 30  # the centre of column 0 in row 0
LINE = "#5b6b82"


def write(folder: Path) -> None:
    """Write all generated files into `folder`."""
    folder.mkdir(exist_ok=True)
    pages = {
        "models.md": models(),
        "popular.md": popular(),
        "commands.md": commands(),
        "house.svg": house(),
        "imports.md": imports_table(),
    }
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:  # Sphinx builds a page again if its file is newer
            path.write_text(text)


def markdown(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    lines.insert(1, "| --- " * len(cells[0]) + "|")
    return "\n".join(lines) + "\n"


# ---- the tables of models -----------------------------------------------------------------------------------------


def models() -> str:
    """Return the table of all models known by name, as Markdown: the data of `vitbackbone models --json`."""
    from vitbackbone import list_backbones
    from vitbackbone.inspection import models_rows

    rows = models_rows(list_backbones())
    return markdown(rows[0], ([_cell(key, value) for key, value in row.items()] for row in rows))


# The encoders that people build on in 2026, one a family, and what for: a judgement, not a count of downloads
POPULAR = {
    "vit_large_patch14_clip_336.openai": "CLIP: the eyes of LLaVA and its kin, zero-shot classification",
    "vit_so400m_patch14_siglip_378.v2_webli": "SigLIP 2: vision-language models, zero-shot and multilingual search",
    "vit_base_patch14_reg4_dinov2.lvd142m": "DINOv2: probes, depth, matching, robot policies",
    "vit_base_patch16_dinov3.lvd1689m": "DINOv3: dense features for segmentation, depth and detection",
    "vit_pe_core_large_patch14_336.fb": "Perception Encoder: zero-shot classification and search, video frames",
    "naflexvit_so400m_patch16_radio_v4.c_radio": "C-RADIO v4: one encoder in place of several, at any size",
    "vit_base_patch14_reg1_tipsv2.webli": "TIPSv2: patches that lie near the words for them",
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": "ViT: the baseline to fine-tune for classification",
    "samvit_base_patch16.sa1b": "SAM: maps for promptable segmentation",
    "hf:MahmoodLab/UNI2-h": "UNI 2: tiles of pathology slides; its weights need an agreement",
}


def popular() -> str:
    """Return the table of the encoders that people use most, as Markdown. `python docs/generated.py` prints it."""
    from vitbackbone.inspection import models_rows

    rows = models_rows(list(POPULAR))
    return markdown(
        ["name", "parameters", "pixels", "licence", "for what"],
        (
            (f"`{row['name']}`", *(_cell(key, row[key]) for key in ("parameters", "pixels", "licence")), use)
            for row, use in zip(rows, POPULAR.values(), strict=True)
        ),
    )


def _cell(key: str, value: object) -> str:
    if isinstance(value, tuple):
        return " x ".join(map(str, dict.fromkeys(value)))
    return f"{value / 1e6:.1f} M" if key == "parameters" and isinstance(value, int) else str(value)


# ---- the command --------------------------------------------------------------------------------------------------


def commands() -> str:
    """Return the help of every command, as Markdown."""
    from vitbackbone.cli.arguments import parser

    with patch.dict(os.environ, COLUMNS="100", NO_COLOR="1"):  # the same help in every terminal
        texts = {name: each.format_help() for name, each in (parser().commands or {}).items()}
    return "\n".join(f"### vitbackbone {name}\n\n```text\n{text.rstrip()}\n```\n" for name, text in texts.items())


# ---- the house ----------------------------------------------------------------------------------------------------


def imports() -> Counter[Edge]:
    """Count the names that each package imports from each other one."""
    found: Counter[Edge] = Counter()
    home = _exports()
    for path in [*(ROOT / "vitbackbone").rglob("*.py"), *(ROOT / "heads").rglob("*.py")]:
        room = _room(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                rooms = [_room(node.module.split("."))] * len(node.names)
                if node.module == "vitbackbone":
                    rooms = [home.get(alias.name, "") for alias in node.names]
                found.update((room, to) for to in rooms if to != room and {room, to} <= set(ROOMS))
    return found


def _room(parts: Iterable[str]) -> str:
    """Return the package that a module belongs to, or an empty string for one of another library."""
    first, second, *_ = [*parts, "", ""]
    return first if first == "heads" else second if first == "vitbackbone" else ""


def _exports() -> dict[str, str]:
    """Return the package of each public name of `vitbackbone`."""
    public = ast.parse((ROOT / "vitbackbone" / "__init__.py").read_text())
    froms = [node for node in ast.walk(public) if isinstance(node, ast.ImportFrom)]
    return {alias.name: _room(str(node.module).split(".")) for node in froms for alias in node.names}


def direct(edges: Iterable[Edge]) -> list[Edge]:
    """Return the edges that no longer way along other edges implies."""
    below: dict[str, set[str]] = {}
    for a, b in edges:
        below.setdefault(a, set()).add(b)

    def reached(room: str) -> set[str]:
        return {far for near in below.get(room, ()) for far in {near} | reached(near)}

    return sorted((a, b) for a, b in edges if not any(b in reached(c) for c in below[a] - {b}))


def imports_table() -> str:
    """Return a table of all imports between packages, as Markdown."""
    edges = imports()
    rows = []
    for room, (what, _, _) in ROOMS.items():
        names = [f"`{to}` ({edges[room, to]})" for to in ROOMS if edges[room, to]]
        rows.append((f"`{room}`", what, ", ".join(names) or "nothing"))
    return markdown(["package", "what is in it", "imports from (names)"], rows)


def house() -> str:
    """Return a drawing of the packages, with an arrow for each import that no longer way implies, as SVG."""
    places = {name: (LEFT + column * COLUMN, TOP + row * ROW) for name, (_, column, row) in ROOMS.items()}
    width = 2 * LEFT + max(column for _, column, _ in ROOMS.values()) * COLUMN
    height = 2 * TOP + max(row for _, _, row in ROOMS.values()) * ROW
    head = '<path d="M0,0 L10,5 L0,10 z" '
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif">',
        '<defs><marker id="a" viewBox="0 0 10 10" refX="10" refY="5" markerWidth="10" markerHeight="10" '
        f'markerUnits="userSpaceOnUse" orient="auto">{head}fill="{LINE}"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
    ]
    around: Counter[bool] = Counter()  # arrows that pass at the left, and at the right
    for edge in direct(imports()):
        start, end = (places[name] for name in edge)
        if any(_hits(start, end, places[name]) for name in ROOMS if name not in edge):
            right = start[0] > width / 2
            distance = LEFT - BOX[0] / 2 - LANE * (1 + around[right])
            edge_x = width - distance if right else distance
            parts.append(_arrow(_around(start, end, edge_x)))
            around[right] += 1
        else:
            parts.append(_arrow(_straight(start, end)))
    parts += [_box(name, *place) for name, place in places.items()]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _hits(start: Point, end: Point, box: Point) -> bool:
    """Tell whether a straight arrow would run through a box, or closer to it than 10 pixels."""
    (x1, y1), (x2, y2), (x, y) = start, end, box
    if not y1 < y < y2:
        return False
    return abs(x1 + (x2 - x1) * (y - y1) / (y2 - y1) - x) < BOX[0] / 2 + 10


def _straight(start: Point, end: Point) -> str:
    """Return the path from the lower edge of one box to the upper edge of another."""
    (x1, y1), (x2, y2) = start, end
    spread = min(1, (BOX[0] / 2 - 24) / max(1, abs(x2 - x1)))  # arrows to one box arrive side by side
    x = x2 + (x1 - x2) * spread * 0.6
    return f"M{x1 + (x2 - x1) * spread * 0.6:.0f},{y1 + BOX[1] / 2:.0f} L{x:.0f},{y2 - BOX[1] / 2:.0f}"


def _around(start: Point, end: Point, x: float) -> str:
    """Return the path from the side of one box to the side of another, along the vertical line at `x`."""
    (x1, y1), (x2, y2) = start, end
    side = 1 if x > x1 else -1
    corner = side * 10
    return (
        f"M{x1 + side * BOX[0] / 2:.0f},{y1:.0f} H{x - corner:.0f} Q{x:.0f},{y1:.0f} {x:.0f},{y1 + 10:.0f} "
        f"V{y2 - 10:.0f} Q{x:.0f},{y2:.0f} {x - corner:.0f},{y2:.0f} H{x2 + side * BOX[0] / 2:.0f}"
    )


def _arrow(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.6" marker-end="url(#a)"/>'


def _box(name: str, x: float, y: float) -> str:
    what = html.escape(ROOMS[name][0])
    return (
        f'<rect x="{x - BOX[0] / 2:.0f}" y="{y - BOX[1] / 2:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="6" '
        f'fill="#eef3fb" stroke="#3b6fb6"/><text x="{x:.0f}" y="{y - 3:.0f}" text-anchor="middle" font-size="16" '
        f'font-weight="600" fill="#1d2a3a">{name}</text><text x="{x:.0f}" y="{y + 13:.0f}" text-anchor="middle" '
        f'font-size="12.5" fill="#46566b">{what}</text>'
    )


if __name__ == "__main__":
    print(popular(), end="")
