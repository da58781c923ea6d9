"""The options of heads: their types, and the check that every head's constructor runs on its arguments.

An option's annotation says which values it accepts. `Count`, `Rate` and the other types below carry their own words
for errors. Plain `int`, `float`, `bool`, `str`, `Literal`, sequences and unions are checked strictly: True is no
integer. Under any other annotation, a value must be an instance of it.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from reprlib import Repr
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from pydantic import ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from vitbackbone import did_you_mean

LARGEST = 1_000_000  # larger than any real width or count; a damaged file may claim any

Count = Annotated[int, Field(ge=1, le=LARGEST, description=f"an integer from 1 to {LARGEST:,}")]
Rate = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False, description="a number from 0 to below 1")]
Length = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a finite number above 0")]
LayerName = Literal["last", "penultimate", "last4", "even4"]
Layers = Annotated[
    Annotated[Sequence[int], Field(min_length=1)] | LayerName,
    Field(description="indices, or one of last, penultimate, last4, even4"),
]
Size = Annotated[tuple[Count, Count], Field(description="(height, width) in pixels, two integers from 1")]

SHORT = Repr()
SHORT.maxstring = SHORT.maxother = 80


def check(owner: str, hints: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options, with NumPy's numbers as Python's. `owner` is the class that has the options, for errors.

    Raises `ValueError` if values do not fit their hints. The error names each option, its value and what is accepted.
    """
    result, wrong = dict(given), []
    for name, value in given.items():
        if name in hints:
            result[name] = plain = _plain(value)
            if not _fits(hints[name], plain):
                wrong.append(f"{name}={SHORT.repr(value)}; want {_words(hints[name], plain)}")
    if wrong:
        raise ValueError(f"{owner}: {'. '.join(wrong)}")
    return result


F = TypeVar("F", bound=Callable[..., None])


def checked(init: F) -> F:
    """Decorate a head's constructor, so that it checks its options before it runs."""

    @wraps(init)
    def checking(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(init).bind(self, *args, **kwargs)
        bound.arguments |= check(type(self).__name__, hints_of(init), bound.arguments)
        init(*bound.args, **bound.kwargs)

    return checking  # type: ignore[return-value]  # it has the signature of what it wraps


@cache
def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function's parameters. Annotations that cannot be resolved are left out."""
    function = inspect.unwrap(function)
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # an annotation names something imported for type checkers only
        hints = {name: hint for name, hint in function.__annotations__.items() if not isinstance(hint, str)}
    parameters = inspect.signature(function).parameters
    single = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: hint for name, hint in hints.items() if name in parameters and parameters[name].kind in single}


def signature_text(parameter: inspect.Parameter, hint: Any) -> str:
    """Return an option as errors list it: its name, its type and its default."""
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.name}: {_type_text(hint)}{default}" if hint is not None else f"{parameter.name}{default}"


def _plain(value: Any) -> Any:
    """Return the value with NumPy's numbers as Python's, and a range as a tuple."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
    return tuple(value) if isinstance(value, range) else value


def _fits(hint: Any, value: Any) -> bool:
    if hint is Any:
        return True
    if isinstance(hint, type) and hint not in SCALARS:
        return isinstance(value, hint)
    try:
        adapter = _adapter(hint)
    except PydanticUserError:  # the hint is not resolved yet, so it cannot be checked
        return True
    try:
        try:
            # As JSON, so that a list may stand for a tuple, as in a saved head. Strict, so that True is not 1.
            adapter.validate_json(json.dumps(value), strict=True)
        except (TypeError, RecursionError, PydanticUserError):  # the value is not JSON, so its type is checked
            adapter.validate_python(value, strict=True)
        return True
    except ValidationError:
        return False


@cache
def _adapter(hint: Any) -> Any:
    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))


SCALARS = (int, float, bool, str, NoneType)
WORDS = {int: "an integer", float: "a number", bool: "True or False", str: "a string", NoneType: "None"}


def _words(hint: Any, value: Any) -> str:
    """Return a hint in words, for errors."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        own = [each.description for each in parts[1:] if isinstance(each, FieldInfo) and each.description]
        return own[0] if own else _words(parts[0], value)
    if origin in (Union, UnionType):
        return " or ".join(_words(part, value) for part in parts)
    if origin is Literal:
        choice = " or ".join(map(repr, parts)) if len(parts) < 3 else f"one of {', '.join(map(str, parts))}"
        return f"{choice}{did_you_mean(value, map(str, parts)).rstrip('?')}"
    if hint in WORDS:
        return WORDS[hint]
    if origin is not None and issubclass(origin, Sequence):
        return f"a list of {_type_text(parts[0])}"
    return f"a {_type_text(hint)}"


def _type_text(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _type_text(parts[0])
    if origin in (Union, UnionType):
        return " | ".join(map(_type_text, parts))
    if origin is Literal:
        return " | ".join(map(repr, parts))
    if origin is not None and parts:
        return f"{getattr(origin, '__name__', origin)}[{', '.join(map(_type_text, parts))}]"
    return "None" if hint is NoneType else "..." if hint is ... else getattr(hint, "__name__", str(hint))
