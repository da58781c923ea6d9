"""The documentation site: its code runs as written, its shapes are right, and its reference is complete."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import heads
import vitbackbone
from tests.helpers import save_photo
from vitbackbone.cli import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "```python\n" in page.read_text())
COMMENT = re.compile(r"^(\w[\w.\[\]\"']*)  # .*?\((\d[^()]*)\)", flags=re.MULTILINE)  # an expression, then its shape


def photos(folder: Path) -> None:
    """Write a portrait photo and a folder of labelled photos, of sizes that no page shows."""
    save_photo(folder / "photo.jpg", 301, 207)
    for i in range(12):
        save_photo(folder / "photos" / ("cats" if i % 2 else "dogs") / f"{i}.jpg", 70 + i, 95 - i, seed=i)
    (folder / "photos" / "dogs" / "broken.jpg").write_bytes(b"")


def shapes(code: str, namespace: dict[str, Any]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return each shape that a comment states, beside the shape that came out."""
    found = []
    for expression, stated in COMMENT.findall(code):
        value = eval(expression, namespace)
        found.append((expression, stated, tuple(getattr(value, "shape", value))))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_code_of_a_page_runs_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path)
    namespace: dict[str, Any] = {}
    for language, code in re.findall(r"```(python|bash)\n(.*?)```", page.read_text(), flags=re.DOTALL):
        if language == "bash":
            for line in code.splitlines():
                program, *arguments = shlex.split(line, comments=True)
                assert program == "vitbackbone"
                assert main(arguments) == 0, line
            continue
        exec(compile(code, str(page), "exec"), namespace)
        for expression, stated, shape in shapes(code, namespace):
            sides = [side.strip() for side in stated.split(",")]
            assert len(sides) == len(shape), f"{page}: {expression} is {shape}"
            for side, actual in zip(sides, shape, strict=True):
                if re.fullmatch(r"[\d *]+", side):
                    assert eval(side) == actual, f"{page}: {expression} is {shape}, the page says ({stated})"


@pytest.mark.parametrize("package", [vitbackbone, heads], ids=lambda package: package.__name__)
def test_the_reference_has_every_public_name_once(package: Any) -> None:
    pages = "\n".join(page.read_text() for page in sorted((DOCS / "reference").glob("*.md")))
    blocks = re.split(r"\.\. currentmodule:: (\w+)\n", pages)
    listed = [
        name
        for module, text in zip(blocks[1::2], blocks[2::2], strict=True)
        if module == package.__name__
        for name in re.findall(r"\.\. auto(?:class|function|data):: (\w+)", text)
    ]
    assert sorted(listed) == sorted(package.__all__)


def test_the_house_shows_every_package_and_no_import_upwards() -> None:
    namespace: dict[str, Any] = {"__file__": str(DOCS / "generated.py")}
    exec((DOCS / "generated.py").read_text(), namespace)
    rooms = namespace["ROOMS"]
    entries = {path.stem for path in (ROOT / "vitbackbone").iterdir()} - {"__init__", "__main__", "__pycache__", "py"}
    assert set(rooms) == {*entries, "heads"}
    row = {name: row for name, (_, _, row) in rooms.items()}
    assert len({(column, row) for _, column, row in rooms.values()}) == len(rooms)
    for above, below in namespace["imports"]():
        assert row[above] < row[below], f"{above} imports {below}"
