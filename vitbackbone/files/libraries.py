"""Tell whether an optional library is installed, and whether libraries written in Rust can open a path."""

from importlib import import_module
from os import PathLike, fspath


def is_installed(module: str) -> bool:
    """Tell whether a library can be imported."""
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def is_utf8(path: str | PathLike[str]) -> bool:
    """Tell whether a path is UTF-8. safetensors and Lance open no other."""
    try:
        fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True
