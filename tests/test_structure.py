"""The house: exported names, the direction of imports, what a bare import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import heads
import vitbackbone

ROOT = Path(__file__).parent.parent
MODULES = sorted([*(ROOT / "vitbackbone").rglob("*.py"), *(ROOT / "heads").rglob("*.py")])

# Each may import from the ones named, and from nothing else of the package.
ALLOWED: dict[str, set[str]] = {
    "decode": set(),
    "resize": set(),
    "preprocess": {"decode", "resize"},
    "config": set(),
    "convert": set(),
    "repeated": set(),
    "tracing": set(),
    "features": {"preprocess", "repeated", "tracing"},
    "pytrees": {"features", "repeated"},
    "packing": {"repeated"},
    "position": {"config", "packing", "tracing"},
    "attention": {"config", "packing", "position"},
    "layers": {"attention", "config", "packing", "position"},
    "pooling": {"config", "features", "layers"},
    "vit": {
        "config",
        "features",
        "layers",
        "packing",
        "pooling",
        "position",
        "preprocess",
        "repeated",
        "tracing",
    },
    "openvino": {"features", "layers", "openvino_graph", "packing", "quantize", "repeated", "vit"},
    "openvino_graph": {"attention", "config", "features", "layers", "packing", "position", "quantize", "vit"},
    "formats": {"convert", "formats"},
    "windows": set(),
    "tiling": {"features", "inference", "preprocess"},
    "timm_adapter": {"config", "features", "preprocess", "tracing", "windows"},
    "timm_names": {"convert", "preprocess", "timm_adapter", "windows"},
    "huggingface": {"config", "huggingface", "preprocess", "resize", "timm_adapter"},
    "zoo": {"config", "fused", "huggingface", "preprocess", "timm_adapter", "zoo"},
    "align": {"features"},
    "fingerprint": {"features"},
    "fused": {"align", "convert", "decode", "features", "preprocess", "tracing"},
    "load": {
        "config",
        "convert",
        "features",
        "formats",
        "fused",
        "huggingface",
        "timm_adapter",
        "timm_names",
        "vit",
        "zoo",
    },
    "files": set(),
    "export": {"config", "convert", "features", "files", "formats", "huggingface", "preprocess", "vit"},
    "inference": set(),
    "extract": {"decode", "extract", "features", "fingerprint", "files", "inference", "preprocess", "runtime"},
    "estimator": {"features", "inference", "load", "preprocess", "vit"},
    "view": {"decode", "features", "inference", "preprocess", "resize"},
    "kernels": {"layers"},
    "quantize": {"kernels", "layers"},
    "graphs": {"features", "kernels", "position", "vit"},
    "paths": {"features", "graphs", "inference", "kernels", "layers", "openvino", "quantize", "vit"},
    "runtime": {"features", "paths"},
    "costs": {"config", "vit"},
    "describe": {"config", "costs", "features", "fused", "preprocess", "zoo"},
    "demo": {"extract", "load", "view"},
    "__init__": {
        "align",
        "fingerprint",
        "config",
        "convert",
        "decode",
        "estimator",
        "export",
        "extract",
        "features",
        "fused",
        "load",
        "packing",
        "preprocess",
        "pytrees",
        "runtime",
        "tiling",
        "timm_adapter",
        "tracing",
        "vit",
    },
    "cli": {
        "cli",
        "demo",
        "describe",
        "extract",
        "features",
        "fingerprint",
        "inference",
        "load",
        "view",
        "vit",
        "heads",
    },  # the one place that knows heads
}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    package, *rest = path.relative_to(ROOT).with_suffix("").parts
    local = {name for name in imports(path) if name.split(".")[0] in ("vitbackbone", "heads")}
    if package == "heads":
        wrong = {name for name in local if name.startswith("vitbackbone.")}
        assert not wrong, f"heads import only what vitbackbone exports, not {wrong}"
        return
    parts = {name.split(".")[1] if name.startswith("vitbackbone.") else name.split(".")[0] for name in local}
    assert parts <= ALLOWED[rest[0]], f"{rest[0]} imports {parts - ALLOWED[rest[0]]}"


def test_the_names_that_are_exported() -> None:
    assert vitbackbone.__all__ == sorted(vitbackbone.__all__)
    for package in (vitbackbone, heads):
        for name in package.__all__:
            assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vitbackbone.nothing
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = heads.nothing


@pytest.mark.parametrize("names", ["extract, extract", "FeatureStore, extract", "ImageFeatures, extract"])
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
