"""Heads by name: built in, registered, and of installed packages.

create_head("mlp", backbone.spec, num_classes=10)
"""

import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from heads.base import Head
from heads.names import BUILT_IN
from heads.options import check, hints_of, signature_text
from vitbackbone import BackboneSpec, did_you_mean, float32_default

GROUP = "vitbackbone.heads"  # group of entry points; each is name = "package.module:Class"

_registered: dict[str, type[Head]] = {}
H = TypeVar("H", bound=type[Head])


def register_head(name: str) -> Callable[[H], H]:
    """Decorate a subclass of `Head`, so that `create_head` knows it by `name`.

    An installed package needs no call: it lists its heads in the entry-point group `vitbackbone.heads`. Raises
    `ValueError` if the name is taken.
    """

    def register(head: H) -> H:
        if not (isinstance(head, type) and issubclass(head, Head)):
            raise ValueError(f"register_head({name!r}) was given {head!r}; want a subclass of heads.Head")
        if not isinstance(name, str) or not name:
            raise ValueError(f"register_head: the name is {name!r}; want a string that is not empty")
        known = _registered.get(name, head)
        # A module that is reloaded, as in a notebook, registers the same class again.
        if name in BUILT_IN or (known.__module__, known.__qualname__) != (head.__module__, head.__qualname__):
            raise ValueError(f"the name {name!r} is taken by another head; choose another name")
        _registered[name] = head
        return head

    return register


def list_heads() -> list[str]:
    """Return the names that `create_head` knows: built in, registered, and of installed packages."""
    return sorted({*BUILT_IN, *_registered, *_installed()})


@float32_default()
def create_head(name: str, spec: BackboneSpec, **config: Any) -> Any:
    """Make a head by its name, sized for the backbone of `spec`, with the options in `config`.

    Raises `ValueError` on an unknown name, and on an option that is unknown, missing or has an invalid value.
    """
    head_class = _find(name)
    if not isinstance(spec, BackboneSpec):
        raise ValueError(f"create_head({name!r}): spec is a {type(spec).__name__}; want a BackboneSpec: backbone.spec")
    options = dict(list(inspect.signature(head_class).parameters.items())[1:])  # without the spec
    free = any(option.kind is option.VAR_KEYWORD for option in options.values())
    options = {
        key: option for key, option in options.items() if option.kind not in (option.VAR_KEYWORD, option.VAR_POSITIONAL)
    }
    stray = [f"has no option {key!r}" for key in config if key not in options and not free]
    lacking = [
        f"needs {key}" for key, option in options.items() if option.default is option.empty and key not in config
    ]
    hints = hints_of(head_class.__init__)
    if stray or lacking:
        known = ", ".join(signature_text(option, hints.get(key)) for key, option in options.items()) or "none"
        hints_at = "".join(did_you_mean(key, options) for key in config if key not in options) if not lacking else ""
        raise ValueError(f"head {name!r} {' and '.join(stray + lacking)}{hints_at}; its options are {known}")
    config = check(f"head {name!r}", hints, config)
    head = head_class(spec, **config)
    head.name, head.config = name, config
    return head


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _find(name: str) -> type[Head]:
    if not isinstance(name, str):
        raise ValueError(f"the name of a head is a {type(name).__name__}; want one of {', '.join(list_heads())}")
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if name in _registered:
        return _registered[name]
    installed = _installed()
    if name not in installed:
        hint = did_you_mean(name, list_heads()) or "."
        raise ValueError(f"unknown head {name!r}{hint} Want one of {', '.join(list_heads())}")
    found = installed[name].load()
    if not (isinstance(found, type) and issubclass(found, Head)):
        raise ValueError(f"head {name!r} of {installed[name].value} is not a subclass of heads.Head")
    return found
