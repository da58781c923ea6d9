"""Shape annotations are checked while the tests run, and only then."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  # the hook names it

install_import_hook(["vitbackbone", "heads"], "tests.typecheck.typechecked")

import torch  # noqa: E402  # after the hook, which must come before the first import of the package

from tests.promises import table  # noqa: E402

torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings

# The environments of `make test-oldest` and `make test-lerobot` lack these libraries. Each pattern finds the test files
# that import one.
WANTED = {
    "transformers": r"^(import|from) (transformers|tests\.oracles|tests\.text)",
    "open_clip": r"^import open_clip",
    "torchmetrics": r"\"(segment|detect)\"",
    "peft": r"^import finetune",
}
MISSING = "|".join(pattern for module, pattern in WANTED.items() if importlib.util.find_spec(module) is None)
collect_ignore = [
    str(path)
    for path in sorted(Path(__file__).parent.rglob("test_*.py"))
    if MISSING and re.search(MISSING, path.read_text(), re.MULTILINE)
]


def pytest_addoption(parser) -> None:
    parser.addoption("--kills", type=int, default=3, help="how often the kill test kills")
    parser.addoption("--promises", action="store_true", help="print what became of each promise of extraction")


OUTCOMES: dict[tuple[str, int], list[str]] = {}  # of each promise on the disk or in a bucket, those of its tests


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        for mark in item.iter_markers("promise"):
            item.user_properties.extend(("promise", number) for number in mark.args)


def pytest_runtest_logreport(report) -> None:
    if report.when == "call" or report.outcome != "passed":  # or it never got to its call
        for name, value in report.user_properties:
            if name == "promise":
                place = "bucket" if "test_bucket.py" in report.nodeid else "disk"
                OUTCOMES.setdefault((place, value), []).append(report.outcome)


def pytest_terminal_summary(terminalreporter, config) -> None:
    if config.getoption("--promises"):
        terminalreporter.section("promises of extraction")
        for line in table(OUTCOMES):
            terminalreporter.write_line(line)
    if collect_ignore:
        names = ", ".join(Path(path).name for path in collect_ignore)
        terminalreporter.write_line(f"left out, because a library that they need is not installed: {names}")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Serve S3 in memory to the tests of a module. Gives the URL."""
    from tests.buckets import moto

    with moto() as url:
        yield url
