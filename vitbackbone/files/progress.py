"""Progress bars on standard error."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

DELAY = 2  # seconds before a passing bar is shown
INTERVAL = 0.1  # seconds between two updates of a bar
LOGGED = 10.0  # the same if standard error is a log file

_hidden = ContextVar("hidden", default=False)


def progress_bar(
    items: Iterable[Any] | None = None,
    what: str | None = None,
    shown: bool = True,
    passing: bool = False,
    **options: Any,
) -> Any:
    """Return tqdm's bar over `items`, named `what`.

    A `passing` bar is shown only if the task takes longer than two seconds, and is removed at its end. `options` are
    tqdm's own, such as `total` and `unit`.
    """
    from tqdm import tqdm

    interval = INTERVAL if sys.stderr.isatty() else LOGGED
    short = {"delay": DELAY, "leave": False} if passing else {}
    return tqdm(items, what, disable=bars_are_hidden() or not shown, mininterval=interval, **short, **options)


def bars_are_hidden() -> bool:
    """Return whether `no_progress_bars` hides all bars. Bars of other libraries should follow it."""
    return _hidden.get()


@contextmanager
def no_progress_bars(hidden: bool = True) -> Iterator[None]:
    """Show no progress bar while the body runs, if `hidden`."""
    before = _hidden.set(hidden or _hidden.get())
    try:
        yield
    finally:
        _hidden.reset(before)
