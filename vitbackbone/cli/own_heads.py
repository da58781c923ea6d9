"""The package `heads` has a common name: a module of the user's may hide it. The command says so, and does not run that
module."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

import vitbackbone

OWN = Path(vitbackbone.__file__).resolve().parent.parent / "heads"


@contextmanager
def own_heads() -> Iterator[None]:
    """While this is open, an import of `heads` finds our package, or raises an `ImportError` that names the file in its
    way. Raises it at once if that file was imported before."""
    if "heads" in sys.modules:
        _check(sys.modules["heads"].__spec__)
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "heads":
            _check(PathFinder.find_spec("heads"))
        return None  # the usual finders go on


def _check(spec: ModuleSpec | None) -> None:
    if spec is None:
        return
    folders = list(spec.submodule_search_locations or ())
    if OWN in [Path(folder).resolve() for folder in folders]:
        return
    there = spec.origin or next(iter(folders), "a module of that name")
    raise ImportError(
        f"{there} hides the package heads, which vitbackbone brings along. Rename that file, or run from another "
        "folder and take its folder off PYTHONPATH"
    )
