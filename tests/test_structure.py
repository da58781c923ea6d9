"""The house: exported names, the direction of imports, what a bare import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import heads
import vitbackbone
from tests.helpers import cases

ROOT = Path(__file__).parent.parent
MODULES = sorted([*(ROOT / "vitbackbone").rglob("*.py"), *(ROOT / "heads").rglob("*.py")])


def imports(path: Path) -> list[str]:
    """Return the modules that a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append("." * node.level + (node.module or ""))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_package_does_not_export_is_private_to_it(path: Path) -> None:
    """Between packages, imports go through `vitbackbone.PACKAGE`. `make lint` holds the direction of imports."""
    package, *rest = path.relative_to(ROOT).parts
    for name in imports(path):
        assert not name.startswith("."), f"{path}: relative import"
        parts = name.split(".")
        if parts[0] != "vitbackbone" or len(parts) < 3:
            continue
        assert package == "vitbackbone", f"{path} imports {name}; heads import what vitbackbone exports"
        assert parts[1] == rest[0], f"{path} imports {name}; import it from vitbackbone.{parts[1]}"


def test_the_front_hall_has_at_most_fifteen_entries() -> None:
    entries = sorted(entry.name for entry in (ROOT / "vitbackbone").iterdir() if entry.name != "__pycache__")
    assert len(entries) <= 15, entries


@pytest.mark.parametrize("init", sorted(ROOT.glob("vitbackbone/*/__init__.py")), ids=lambda path: path.parent.name)
def test_a_package_opens_with_one_sentence(init: Path) -> None:
    text = ast.get_docstring(ast.parse(init.read_text()))
    assert text
    assert text.splitlines()[0].endswith(".")


def test_the_names_that_are_exported() -> None:
    for package in (vitbackbone, heads):
        for name in package.__all__:
            assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="No .* attribute nothing"):
        _ = vitbackbone.nothing
    with pytest.raises(AttributeError, match="No .* attribute nothing"):
        _ = heads.nothing


@pytest.mark.parametrize(
    "names", cases(["extract, extract", "FeatureStore, extract", "ImageFeatures, extract"], {"FeatureStore, extract"})
)
def test_extract_is_the_function_in_whatever_order_it_is_imported(names: str) -> None:
    """It shares its name with the module that it is in."""
    code = f"import vitbackbone as v; from vitbackbone import {names}; assert callable(extract) and callable(v.extract)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", ["vitbackbone", "heads", "vitbackbone.cli"])
def test_a_bare_import_is_light(module: str) -> None:
    code = f"import {module}, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    heavy = {"openvino", "timm", "transformers", "sklearn", "matplotlib", "torchvision", "pyarrow", "pandas", "ray"}
    assert not heavy & set(loaded)


def test_the_way_of_an_image_is_as_short_as_contributing_says() -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.forward_path",
    ]  # without the tests' type checks, which add frames
    measured = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    told = {row[0]: row[1:] for row in table((ROOT / "CONTRIBUTING.md").read_text())}
    rows = [row for row in table(measured) if row[1].isdigit()]
    assert len(rows) == 4
    for call, frames, _, names, *_ in rows:
        row = told.get(call) or told[f"`{call}`"]
        assert (int(frames), int(names)) == (int(row[0]), int(row[2]))
        assert int(frames) <= 6
        assert int(names) <= 12


def table(text: str) -> list[list[str]]:
    """Return the cells of each row of the tables in Markdown."""
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_the_version_is_in_the_changelog() -> None:
    assert f"## {vitbackbone.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.promise(26)
def test_pickles_are_never_loaded() -> None:
    for path in [*MODULES, *(ROOT / "examples").glob("*.py")]:
        text = path.read_text()
        assert "allow_pickle=True" not in text
        assert "weights_only=False" not in text
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("pickle.load", "pickle.loads", "joblib.load"), path
