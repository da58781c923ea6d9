"""The documentation site: its code runs as written, its shapes are right, and its reference is complete."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import heads
import vitbackbone
from tests.buckets import photos_in_shards
from tests.docs.pages import ROOT, run_page, save_photos
from vitbackbone.cli.arguments import parser
from vitbackbone.cli.usage import option_names

DOCS = ROOT / "docs"
PAGES = sorted(
    page
    for page in DOCS.rglob("*.md")
    if not page.relative_to(DOCS).parts[0].startswith("_") and re.search("^```(python|bash)$", page.read_text(), re.M)
)
VIDEO = DOCS / "how-to" / "video.md"  # it reads the video `clip.mp4`
FORMATS = DOCS / "how-to" / "formats.md"
ZERO_SHOT = DOCS / "how-to" / "zero-shot.md"  # it uses a model in the folder `clip`
TRACED = DOCS / "how-to" / "export.md"
BUCKETS = DOCS / "how-to" / "a-billion-images.md"  # it reads and writes s3://photos


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page == TRACED)) for page in PAGES],
    ids=lambda page: str(page.relative_to(DOCS)),
)
def test_the_code_of_a_page_runs_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_photos(tmp_path)
    if page == ZERO_SHOT:
        pytest.importorskip("transformers")
        from tests.text.models import CASES

        CASES["clip"].save(tmp_path / "clip")
    if page == VIDEO:
        pytest.importorskip("av")
        from tests.images.videos import KINDS, make_video

        (tmp_path / "clip.mp4").write_bytes(make_video(KINDS["mp4"]))
    if page == FORMATS:
        pytest.importorskip("h5py")
    if page == BUCKETS:
        with photos_in_shards(monkeypatch):
            run_page(page)
    elif page == TRACED:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        subprocess.run([sys.executable, "-m", "tests.docs.pages", page], check=True)
    else:
        run_page(page)


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


def test_the_page_of_the_command_line_has_every_command_and_option(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace: dict[str, Any] = {"__file__": str(DOCS / "generated.py")}
    exec((DOCS / "generated.py").read_text(), namespace)
    helps = namespace["commands"]()
    monkeypatch.setenv("COLUMNS", "20")
    assert namespace["commands"]() == helps
    page = (DOCS / "how-to" / "command-line.md").read_text()
    table = page.split("| --- | --- |")[1].split("\n\n")[0]
    with_json = re.search(r"on standard output\. (.*?) have it", page, re.DOTALL)[1]
    commands = parser().commands
    assert set(re.findall(r"^\| (.*?) \|", table, re.MULTILINE)) == {
        "`log`, `prune`" if name == "log" else f"`{name}`" for name in commands if name != "prune"
    }
    assert set(re.findall(r"`(\w+)`", with_json)) == {
        name for name, each in commands.items() if "--json" in option_names(each)
    }
    for name, each in commands.items():
        text = helps.split(f"### vitbackbone {name}\n")[1].split("### ")[0]
        assert all(option in text for option in option_names(each)), name


def test_the_page_of_the_start_names_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    page = (DOCS / "start.md").read_text()
    assert set(re.findall(r"`(\w+)`", page.split("| extra | what it adds |")[1].split("\n\n")[0])) == set(extras)


def test_the_table_of_models_has_every_name() -> None:
    namespace: dict[str, Any] = {"__file__": str(DOCS / "generated.py")}
    exec((DOCS / "generated.py").read_text(), namespace)
    _, _, *rows = namespace["models"]().splitlines()
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == vitbackbone.list_backbones()


def test_the_table_of_popular_models_has_ten_known_names_with_licences() -> None:
    namespace: dict[str, Any] = {"__file__": str(DOCS / "generated.py")}
    exec((DOCS / "generated.py").read_text(), namespace)
    _, _, *rows = namespace["popular"]().splitlines()
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert len(cells) == 10
    assert {name.strip("`") for name, *_ in cells} <= set(vitbackbone.list_backbones())
    assert all(all(cell.strip() for cell in row) and len(row) == 5 for row in cells)
