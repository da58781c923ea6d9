"""Protection against a module of the user's that is called `heads`, as our package is."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

import vitbackbone

OWN = Path(vitbackbone.__file__).resolve().parent.parent / "heads"


@contextmanager
def our_heads() -> Iterator[None]:
    """Let an import of `heads` find our package, or raise an `ImportError` that names the file in its way.

    That file is not run. If it was imported before, the error comes at once.
    """
    if "heads" in sys.modules:
        _check(sys.modules["heads"].__spec__)
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname == "heads":
            _check(PathFinder.find_spec("heads"))
        return None  # the usual finders continue


def _check(spec: ModuleSpec | None) -> None:
    if spec is None:
        return
    folders = list(spec.submodule_search_locations or ())
    if OWN in [Path(folder).resolve() for folder in folders]:
        return
    there = spec.origin or next(iter(folders), "a module of that name")
    raise ImportError(
        f"{there} hides the package heads, which is a part of vitbackbone. Rename that file, or run the command in "
        "another folder and without it on PYTHONPATH"
    )
