"""Run the code of a page as written, and compare the shapes in its comments with those that come out.

    python -m tests.docs.pages PAGE

runs a page in the current folder. This process lacks the type checks of the tests, which torch's exporters would trace.
"""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

from tests.helpers import save_photo
from vitbackbone.cli import main

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```(python|bash)\n(.*?)```", flags=re.DOTALL)
SHAPE = re.compile(r"^(\w[\w.\[\]\"']*)  # .*?\((\d[^()]*)\)", flags=re.MULTILINE)  # an expression, then its shape


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in a language, in order."""
    return [code for found, code in BLOCK.findall(page.read_text()) if found == language]


def save_photos(folder: Path, height: int = 301, width: int = 207) -> None:
    """Write a photo, and a folder of labelled photos with one that is damaged, in sizes that no page shows."""
    save_photo(folder / "photo.jpg", height, width)
    for i in range(12):
        save_photo(folder / "photos" / ("cats" if i % 2 else "dogs") / f"{i}.jpg", 70 + i, 95 - i, seed=i)
    (folder / "photos" / "dogs" / "broken.jpg").write_bytes(b"")


def run_commands(code: str) -> None:
    """Run each line of a block as a `vitbackbone` command. Raises `AssertionError` on another exit code than 0."""
    for line in code.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "vitbackbone", line
        assert main(arguments) == 0, line


def check_shapes(code: str, namespace: dict[str, Any]) -> None:
    """Compare the shapes that comments state with those of the values. A side given by letters may be any number."""
    for expression, stated in SHAPE.findall(code):
        value = eval(expression, namespace)
        shape = tuple(getattr(value, "shape", value))
        sides = [side.strip() for side in stated.split(",") if side.strip()]
        wanted = [
            eval(side) if re.fullmatch(r"[\d *+]+", side) else actual for side, actual in zip(sides, shape, strict=True)
        ]
        assert wanted == list(shape), f"{expression} is {shape}, the page says ({stated})"


def run_page(page: Path) -> dict[str, Any]:
    """Run all blocks of a page in order and return the names that its Python code made."""
    namespace: dict[str, Any] = {}
    for language, code in BLOCK.findall(page.read_text()):
        if language == "bash":
            run_commands(code)
        else:
            exec(compile(code, str(page), "exec"), namespace)
            check_shapes(code, namespace)
    return namespace


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
