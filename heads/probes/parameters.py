"""Checks of an estimator's parameters. scikit-learn's contract puts them at the start of `fit`, not into `__init__`.

Each reads the parameter `name` of an estimator. Its `ValueError` says which parameter is wrong, what was given and what
is accepted.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

SEEDS = 2**32  # numpy's legacy generators, and so scikit-learn, take only smaller seeds


def choice(estimator: Any, name: str, accepted: Iterable[str]) -> None:
    """Accept one of the strings in `accepted`."""
    given, known = getattr(estimator, name), tuple(accepted)
    if not isinstance(given, str) or given not in known:
        raise ValueError(f"{_where(estimator)}: unknown {name} {given!r}; want one of {', '.join(known)}")


def flag(estimator: Any, name: str) -> None:
    """Accept True or False."""
    given = getattr(estimator, name)
    if not isinstance(given, bool | np.bool_):
        raise ValueError(f"{_where(estimator)}: {name} must be True or False, got {given!r}")


def count(estimator: Any, name: str, optional: bool = False) -> None:
    """Accept a positive integer; if `optional`, None as well."""
    given = getattr(estimator, name)
    if optional and given is None:
        return
    if not _is_integer(given) or given < 1:
        wanted = "None or a positive integer" if optional else "a positive integer"
        raise ValueError(f"{_where(estimator)}: {name} must be {wanted}, got {given!r}")


def positive(estimator: Any, name: str, zero: bool = False) -> None:
    """Accept a finite number above 0; with `zero`, 0 as well."""
    given = getattr(estimator, name)
    number = isinstance(given, int | float | np.integer | np.floating) and not isinstance(given, bool)
    if not number or not math.isfinite(given) or given < 0 or (given == 0 and not zero):
        wanted = "a number, 0 or positive" if zero else "a positive number"
        raise ValueError(f"{_where(estimator)}: {name} must be {wanted}, got {given!r}")


def seed(estimator: Any, name: str) -> None:
    """Accept an integer that seeds a generator. A generator is refused, because its state would decide the result."""
    given = getattr(estimator, name)
    if not _is_integer(given) or not 0 <= given < SEEDS:
        raise ValueError(f"{_where(estimator)}: {name} must be an integer from 0 to {SEEDS - 1}, got {given!r}")


def device(estimator: Any, name: str) -> None:
    """Accept a device that torch has on this machine."""
    given = getattr(estimator, name)
    try:
        torch.empty(0, device=given if isinstance(given, torch.device) else str(given))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{_where(estimator)}: {name}={given!r}: {reason}; want cpu, cuda, cuda:1 or mps") from error


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _where(estimator: Any) -> str:
    return type(estimator).__name__
