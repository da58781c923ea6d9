"""Tests whose library is not installed are skipped: the environments of `make test-oldest` and `make test-lerobot` lack
some.
"""

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

LIBRARIES = ("open_clip", "openvino", "peft", "sentencepiece", "torchmetrics", "transformers")
ABSENT = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[Any]:
    report = yield
    return _skipped_if_absent(report, report.call.excinfo)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[Any]) -> Iterator[Any]:
    report = yield
    return _skipped_if_absent(report, call.excinfo)


def _skipped_if_absent(report: Any, found: pytest.ExceptionInfo[BaseException] | None) -> Any:
    """Return the report of a skipped test if an absent library made it fail."""
    error, seen = found.value if found else None, set[int]()
    while error is not None and id(error) not in seen:  # causes may go in a circle
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in ABSENT:
            report.outcome, report.longrepr = "skipped", (report.nodeid, 0, f"Skipped: {error.name} is not installed")
        seen.add(id(error))
        error = error.__cause__
    return report
