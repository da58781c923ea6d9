"""Access to a setting of transformers' JSON files."""

from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]


class NotNative(ValueError):
    """A setting that transformers has for a model type, and this package's ViT has not."""


def get(config: Json, key: str, default: Any) -> Any:
    """Return a setting, or its default if it is missing or null, as in older files."""
    value = config.get(key)
    return default if value is None else value
