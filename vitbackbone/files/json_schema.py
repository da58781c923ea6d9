"""Reading JSON that anyone may have edited: each file through a schema, and one `ValueError` for all its faults.

A schema is a class whose fields pydantic checks: a `Record` or a dataclass. Types are strict: a bool is not a
number, 2.0 is not an integer, and "2" is neither. Bounds stand beside a type: `Annotated[int, Field(ge=1, le=100)]`.
"""

import json
import math
from collections import Counter
from functools import cache
from os import PathLike
from pathlib import Path
from reprlib import Repr
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")

LIMIT = 1 << 26  # bytes of a JSON file; the index of the largest checkpoints has about 10 MB
MOST_LINES = 8  # wrong keys that one error lists
SHORT = Repr()
SHORT.maxstring = SHORT.maxother = 100


class Record(BaseModel):
    """A frozen record with checked fields. It ignores the keys that it does not name; `class X(Record, extra="forbid")`
    refuses them."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


def read_json(path: str | PathLike[str], schema: type[T], limit: int = LIMIT) -> T:
    """Read a JSON file and check it against `schema`.

    Raises `OSError` if the file cannot be read. Raises `ValueError` if it has more than `limit` bytes, is not JSON, or
    does not fit the schema. Both errors name the file, and the latter the wrong keys.
    """
    return parse_json(read_bytes(path, limit), schema, str(path))


def parse_json(data: bytes, schema: type[T], name: str) -> T:
    """Check the bytes of a JSON file against `schema`. `name` stands for the file in errors.

    Raises the `ValueError` of `read_json`. The JSON must be UTF-8. An object may name a key only once, and no number
    may be NaN or infinite.
    """
    try:
        whole = json.loads(data.decode("utf-8"), object_pairs_hook=_object)
        _check_finite("the file", whole)
        return _adapter(cast(Any, schema)).validate_json(data, strict=True)
    except ValidationError as error:  # a ValueError, too
        raise ValueError(f"{name} {_explain(error)}") from None
    except RecursionError:
        raise ValueError(f"{name} is not a valid JSON file: it nests too deeply") from None
    except ValueError as error:
        raise ValueError(f"{name} is not a complete JSON file ({error}); download or write it again") from None


def check_record(value: Any, schema: type[T], name: str, under: str = "") -> T:
    """Check a value that was read from JSON against `schema`. In errors, `name` stands for the file and `under` for the
    key that holds the value. Raises the `ValueError` of `read_json`."""
    try:
        return _adapter(cast(Any, schema)).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise ValueError(f"{name} {_explain(error, under)}") from None


def read_bytes(path: str | PathLike[str], limit: int = LIMIT) -> bytes:
    """Return the bytes of a file. Raises `OSError` if it is not a regular file, and `ValueError` if it has more than
    `limit` bytes."""
    path = Path(path)
    if path.exists() and not path.is_file():  # opening a named pipe would wait for a writer
        kind = IsADirectoryError if path.is_dir() else OSError
        raise kind(f"{path} is not a regular file")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path} has more than {limit:,} bytes, too many for a file of this kind")
    return data


@cache
def _adapter(schema: Any) -> Any:
    return TypeAdapter(schema)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"it has the key {SHORT.repr(name)} twice")
    for name, value in pairs:
        _check_finite(name, value)
    return result


def _check_finite(name: str, value: Any) -> None:
    """Raise `ValueError` if a number, or one in a list, is NaN or infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"it has {SHORT.repr(name)[1:-1]}={value}; want a finite number")
    if isinstance(value, list):
        for part in value:
            _check_finite(name, part)


def _explain(error: ValidationError, under: str = "") -> str:
    """Describe the faults that a schema found, key by key. `under`: the key that holds the value that was checked."""
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        wanted = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if problem["type"] == "json_invalid":
            return f"is not a complete JSON file ({wanted}); download or write it again"
        key = SHORT.repr(".".join(map(str, (*filter(None, [under]), *problem["loc"]))))[1:-1]
        value = SHORT.repr(problem["input"])
        if problem["type"] == "value_error" and not problem["loc"]:  # a sentence about several keys
            lines.append(f"{wanted} ({under})" if under else wanted)
        elif problem["type"] == "missing":
            lines.append(f"no {key}, which is required")
        else:
            subject = f"{key}={value}" if key else value
            lines.append(f"{subject}, which {wanted}" if wanted.startswith("should") else f"{subject}: {wanted}")
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"and {len(lines) - MOST_LINES} more"]
    return f"has {lines[0]}" if len(lines) == 1 else "has wrong values:\n  " + "\n  ".join(lines)
