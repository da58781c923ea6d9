"""The pages and drawings that are made from the code: the table of models, and the house from its imports."""

import ast
import html
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = {  # package: what is in it; from the top, each row may import from the rows below
    "cli": "the command",
    "heads": "features to results",
    "sklearn": "ImageFeatures",
    "store": "features on disk",
    "inspection": "costs and pictures",
    "runtime": "the same, sooner",
    "checkpoints": "names to weights",
    "networks": "other networks",
    "model": "the ViT",
    "contract": "what comes out",
    "images": "files to tensors",
    "files": "whole or not at all",
}
ROWS = (
    ("cli",),
    ("heads",),
    ("sklearn", "store", "inspection"),
    ("runtime",),
    ("checkpoints",),
    ("networks",),
    ("model",),
    ("contract",),
    ("images", "files"),
)
WIDTH, HEIGHT, BOX = 760, 62, (200, 40)


def write(folder: Path) -> None:
    """Write all generated files into `folder`."""
    folder.mkdir(exist_ok=True)
    for name, text in {"models.md": models(), "house.svg": house()}.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:  # an unchanged page is not built again
            path.write_text(text)


def models() -> str:
    """Return the table of all models known by name, as Markdown."""
    from vitbackbone.checkpoints.load import list_backbones
    from vitbackbone.inspection.describe import models_table

    header, *rows = (line.split("  ") for line in models_table(list_backbones()).splitlines())
    cells = [[cell.strip() for cell in row if cell.strip()] for row in [header, *rows]]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    lines.insert(1, "| --- " * len(cells[0]) + "|")
    return "\n".join(lines) + "\n"


def house() -> str:
    """Return a drawing of the packages and the imports between them, as SVG."""
    edges = imports()
    places = {}
    for row, names in enumerate(ROWS):
        for column, name in enumerate(names):
            places[name] = (WIDTH * (2 * column + 1) // (2 * len(names)), 30 + row * HEIGHT)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {len(ROWS) * HEIGHT}" font-family="sans-serif">'
    ]
    parts.append(
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#8a94a6"/></marker></defs>'
        f'<rect width="{WIDTH}" height="{len(ROWS) * HEIGHT}" fill="#ffffff"/>'
    )
    for (a, b), count in sorted(edges.items()):
        (x1, y1), (x2, y2) = places[a], places[b]
        bend = (x1 + x2) / 2 + (0 if abs(y2 - y1) <= HEIGHT else (150 if hash_free(a, b) else -150))
        parts.append(
            f'<path d="M{x1},{y1 + 20} Q{bend},{(y1 + y2) / 2} {x2},{y2 - 20}" fill="none" stroke="#8a94a6" '
            f'stroke-width="{0.8 + min(count, 20) / 10:.1f}" opacity="0.7" marker-end="url(#a)">'
            f"<title>{a} imports {count} names from {b}</title></path>"
        )
    for name, (x, y) in places.items():
        parts.append(
            f'<rect x="{x - BOX[0] // 2}" y="{y - BOX[1] // 2}" width="{BOX[0]}" height="{BOX[1]}" rx="6" '
            f'fill="#eef3fb" stroke="#3b6fb6"/><text x="{x}" y="{y - 2}" text-anchor="middle" font-size="14" '
            f'font-weight="600" fill="#1d2a3a">{name}</text><text x="{x}" y="{y + 13}" text-anchor="middle" '
            f'font-size="11" fill="#46566b">{html.escape(ROOMS[name])}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def hash_free(a: str, b: str) -> bool:
    """Return which side an arrow bends to, the same on every machine."""
    return (len(a) + len(b)) % 2 == 0


def imports() -> Counter[tuple[str, str]]:
    """Return how many names each package imports from each other one."""
    found: Counter[tuple[str, str]] = Counter()
    for path in [*(ROOT / "vitbackbone").rglob("*.py"), *(ROOT / "heads").rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        room = "heads" if parts[0] == "heads" else parts[1]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                to = "heads" if node.module.split(".")[0] == "heads" else [*node.module.split("."), ""][1]
                if node.module.startswith(("vitbackbone.", "heads")) and to != room and {to, room} <= set(ROOMS):
                    found[room, to] += len(node.names)
    return found
