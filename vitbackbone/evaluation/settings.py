"""Settings of a protocol: named fields of frozen records, each with its meaning and its source."""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from vitbackbone.files import did_you_mean

R = TypeVar("R")


def setting(default: Any, meaning: str, source: str = "", least: float | None = None) -> Any:
    """Declare a field of a frozen dataclass as a setting.

    `source`: where its default is from. `least`: the lowest value allowed. The default is 1 for whole numbers and 0 for
    others, or the setting's own default if that is lower.
    """
    return field(default=default, metadata={"meaning": meaning, "source": source, "least": least})


@dataclass(frozen=True)
class Setting:
    """A setting of a protocol, as `describe` shows it."""

    key: str  # such as "fit.k"
    value: Any
    meaning: str
    source: str


def settings_of(record: Any, prefix: str = "", sources: Mapping[str, str] | None = None) -> list[Setting]:
    """List the settings of a record. `sources` has the sources of values that are not a field's default."""
    found = []
    for each in fields(record):
        key, value = f"{prefix}{each.name}", getattr(record, each.name)
        own = each.metadata.get("source", "") if value == each.default else ""  # another value is the protocol's
        found.append(Setting(key, value, each.metadata.get("meaning", ""), (sources or {}).get(key, own)))
    return found


def changed(record: R, name: str, text: str, key: str) -> R:
    """Return the record with one field changed to the value of a text. `key` names the setting in errors.

    Raises `ValueError` if the text is not a value of the field's type, or a number below the least one.
    """
    value = parse(text, typing.get_type_hints(type(record))[name], key)
    about = next(each for each in fields(record) if each.name == name)  # type: ignore[arg-type]
    least = about.metadata.get("least")
    if least is None:
        own = _numbers(about.default)
        least = min([1 if own and all(isinstance(each, int) for each in own) else 0, *own])
    if not all(each >= least for each in _numbers(value)):  # NaN is not
        raise ValueError(f"--set {key}={text}; want at least {least:g}")
    if not all(map(math.isfinite, _numbers(value))):
        raise ValueError(f"--set {key}={text}; want finite numbers")
    return replace(record, **{name: value})  # type: ignore[type-var]


def _numbers(value: Any) -> list[int | float]:
    """Return the numbers of a setting's value."""
    values = value if isinstance(value, tuple) else (value,)
    return [each for each in values if isinstance(each, int | float) and not isinstance(each, bool)]


def parse(text: str, hint: Any, key: str) -> Any:
    """Return the value of a type that a text stands for. Tuples are values with commas; "none" is an empty one.

    A union is of tuples of several lengths. Raises `ValueError` if the text is no such value.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        length = len(_parts(text))
        return parse(
            text, next((each for each in arguments if len(typing.get_args(each)) == length), arguments[0]), key
        )
    if origin is typing.Literal:
        if text not in arguments:
            raise ValueError(f"--set {key}={text}; want one of {', '.join(map(str, arguments))}")
        return text
    if origin is tuple:
        parts, any_length = _parts(text), Ellipsis in arguments
        if not any_length and len(parts) != len(arguments):
            raise ValueError(f"--set {key}={text}; want {len(arguments)} values separated by commas")
        if any_length and not parts and arguments[0] is not str:
            raise ValueError(f"--set {key}={text}; want at least one value")
        return tuple(parse(part, arguments[0], key) for part in parts)
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"--set {key}={text}; want true or false")
        return text.lower() == "true"
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            kind = "a whole number" if hint is int else "a number"
            raise ValueError(f"--set {key}={text}; want {kind}") from None
    return text


def _parts(text: str) -> list[str]:
    parts = [] if text.strip().lower() == "none" else text.split(",")
    return [part.strip() for part in parts if part.strip()]


def find_key(name: str, keys: list[str]) -> str:
    """Return the key that a user's name means: the whole key, or its last part if that is unique.

    Raises `ValueError` on an unknown or an ambiguous name.
    """
    found = [key for key in keys if name in (key, key.rpartition(".")[2])]
    if len(found) > 1:
        raise ValueError(f"--set {name}: several settings have this name; want one of {', '.join(found)}")
    if not found:
        raise ValueError(
            f"--set {name}: no such setting{did_you_mean(name, keys) or '.'} Settings are {', '.join(keys)}"
        )
    return found[0]


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: records become dicts, tuples lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def digest(*values: Any) -> str:
    """Return a SHA-256 (64 hexadecimal digits) of values that JSON can hold, records among them."""
    return hashlib.sha256(json.dumps(plain(values), sort_keys=True).encode()).hexdigest()
