"""Building a model of transformers from its `config.json`: the config, the class, and the model on the meta device."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from torch import nn

from vitbackbone.networks.transformers.parts import GRID, PIXELS, arguments, private, require_transformers

# Settings that point to code, to a download, or to another number format than float32
DROPPED = frozenset(
    {"auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "dtype", "torch_dtype"}
)
MOST_LAYERS = 4096


def knows(model_type: object) -> bool:
    """Return whether the installed transformers has this model type."""
    require_transformers()
    return model_type in private("models.auto.configuration_auto", "CONFIG_MAPPING_NAMES")


def make_config(settings: str) -> Any:
    """Return transformers' config of a `config.json`, without the settings that point to code or to a download.

    Raises `ValueError` on an unknown model type or settings that transformers refuses.
    """
    saved = _plain(json.loads(settings))
    _check_depth(saved)
    model_type = saved.get("model_type")
    if not knows(model_type):
        raise ValueError(f"transformers {require_transformers().__version__} has no model type {model_type!r}")
    try:
        return private("models.auto.configuration_auto", "CONFIG_MAPPING")[model_type].from_dict(saved)
    except Exception as error:  # each config class has its own errors
        raise ValueError(f"transformers refuses this config.json of {model_type!r}: {_first_line(error)}") from error


def _check_depth(value: Any) -> None:
    """Raise `ValueError` on a number of layers that would take forever to build."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            many = isinstance(item, int) and not isinstance(item, bool) and item > MOST_LAYERS
            if many and re.search("layers|depth|blocks|stages", str(key)):
                raise ValueError(f"config.json has {key}={item}; want at most {MOST_LAYERS}")
            _check_depth(item)
    elif isinstance(value, list):
        for item in value:
            _check_depth(item)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {"__float__"}:  # transformers' way to write what JSON cannot
            return float(value["__float__"])
        kept = {key: _plain(item) for key, item in value.items() if key not in DROPPED}
        return {key: False if key == "use_pretrained_backbone" else item for key, item in kept.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def model_class(config: Any, architecture: str) -> Any:
    """Return the class that a checkpoint was saved from.

    It is the class named `architecture` if the model type's package has it. Otherwise it is the one of `AutoModel`, of
    `AutoBackbone`, or the first class of the package with this config that takes pixels.
    Raises `ValueError` if there is none.
    """
    package, modeling = import_module(type(config).__module__.rpartition(".")[0]), _modeling(config)
    for name in (architecture, *_auto_names(config.model_type)):
        found = (getattr(package, name, None) or getattr(modeling, name, None)) if name else None
        if inspect.isclass(found) and issubclass(found, nn.Module):
            return found
    for found in vars(modeling).values():
        of_config = inspect.isclass(found) and getattr(found, "config_class", None) is type(config)
        if of_config and set(arguments(found)) & {*PIXELS, GRID}:
            return found
    raise ValueError(f"transformers has no class of the model type {config.model_type!r} that takes images")


def _modeling(config: Any) -> Any:
    return import_module(type(config).__module__.replace(".configuration_", ".modeling_"))


def _auto_names(model_type: str) -> Iterator[str]:
    for mapping in ("MODEL_MAPPING_NAMES", "MODEL_FOR_BACKBONE_MAPPING_NAMES"):
        names = getattr(import_module("transformers.models.auto.modeling_auto"), mapping, {}).get(model_type, ())
        yield from (names,) if isinstance(names, str) else names


@contextmanager
def empty_parameters() -> Iterator[None]:
    """Create parameters on the meta device, and buffers as they are.

    Tables that no checkpoint holds, such as rotary frequencies, are buffers, and their values must be kept.
    """
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def build(config: Any, architecture: str) -> Any:
    """Build a model with its parameters on the meta device. Raises `ValueError` if transformers cannot."""
    made = model_class(config, architecture)
    try:
        with empty_parameters():
            return made(config).eval()
    except Exception as error:
        raise ValueError(f"transformers cannot build {made.__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    text = " ".join((str(error) or type(error).__name__).split())
    return text if len(text) <= 200 else f"{text[:196]} ..."
