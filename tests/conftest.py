"""Shape annotations are checked while the tests run, and only then."""

from collections.abc import Iterator

import pytest
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  # the hook names it

install_import_hook(["vitbackbone", "heads"], "tests.typecheck.typechecked")

import torch  # noqa: E402  # after the hook, which must come before the first import of the package

# pytest looks for its hooks here.
from tests.absent import pytest_make_collect_report, pytest_runtest_makereport  # noqa: E402, F401
from tests.promises import table  # noqa: E402

torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings


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


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Serve S3 in memory to the tests of a module. Gives the URL."""
    from tests.buckets import moto

    with moto() as url:
        yield url
