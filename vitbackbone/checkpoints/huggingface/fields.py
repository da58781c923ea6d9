"""Reading a setting of transformers' JSON files."""

from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]


def get(config: Json, key: str, default: Any) -> Any:
    """A setting; older files leave out or write null for what is transformers' default."""
    value = config.get(key)
    return default if value is None else value


def sides(size: Any) -> tuple[int, int]:
    """(H, W) of a number, a pair, or {height, width}."""
    if isinstance(size, Mapping):
        return size["height"], size["width"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])
