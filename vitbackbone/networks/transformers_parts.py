"""The parts of a transformers model that the adapter needs: its class, its image encoder, and the encoder's layers.

They are found by the rules stated at each function, never by a model's name. Every private name of transformers that
this package reads goes through this module, so that a transformers that renamed one raises an error that says so.
"""

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, cast

import torch
from torch import nn

CHANNELS = ("num_channels", "in_channels", "in_chans")  # names of the number of channels in a config
SIZES = ("image_size", "img_size", "input_size", "image_resolution", "resolution")  # names of (H, W) in a config
PIXELS = ("pixel_values", "pixel_values_videos", "flattened_patches")
GRID = "grid_thw"  # (time, height, width) in patches of each image, for encoders that take packed patches
# Settings that point to code, to a download, or to another number format than float32
DROPPED = frozenset(
    {"auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "dtype", "torch_dtype"}
)
MOST_LAYERS = 4096
# The names under which a config holds the config of its image encoder, the preferred one first
ENCODER_KEYS = (
    "vision_config", "image_config", "backbone_config", "encoder", "vision_tower_config", "image_encoder_config",
    "image_model_config", "vision_encoder_config",
)  # fmt: skip


def require_transformers() -> Any:
    """Return transformers. Raises `ImportError` that says how to install it."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "the adapter over transformers is used, and transformers is not installed; pip install 'vitbackbone[hf]'"
        ) from error
    return transformers


def private(module: str, name: str) -> Any:
    """Return a private name of transformers. Raises `RuntimeError` if the installed transformers has no such name."""
    try:
        return getattr(import_module(f"transformers.{module}"), name)
    except (ImportError, AttributeError) as error:
        version = require_transformers().__version__
        raise RuntimeError(
            f"transformers {version} has no {module}.{name}, which this package reads; install another transformers, "
            "from 5.23 on"
        ) from error


# ---- configurations and classes -------------------------------------------------------------------------------


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
        if of_config and set(_arguments(found)) & {*PIXELS, GRID}:
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


# ---- the image encoder ----------------------------------------------------------------------------------------


def _arguments(module: Any) -> list[str]:
    return [name for name in inspect.signature(module.forward).parameters if name != "self"]


def takes_pixels(module: Any, named: bool = True) -> bool:
    """Return whether a module's first argument is images, or packed patches with their grid.

    `named`: whether the argument has a name for pixels. Otherwise the class says that it takes pixels.
    """
    names = _arguments(module)
    if not names:
        return False
    if not named:
        return names[0] == "hidden_states" and getattr(module, "main_input_name", "") in PIXELS
    return names[0] in PIXELS or (names[0] == "hidden_states" and GRID in names)


def find_towers(model: Any) -> list[str]:
    """Return the paths of a model's image encoders, the preferred one first.

    An image encoder is a model within the model whose first argument is pixels. If some have a config of their own
    within the config, these count, each without the encoders within it that share its config. An encoder that holds
    another one as its `backbone_config` or under another name of `ENCODER_KEYS` gives way to it. If none has its own
    config, a network of timm counts, or else a backbone class, whose maps have norms of their own, or else the
    innermost model. An encoder under an earlier key comes first, then the one with more parameters. An autoencoder
    gives way to its encoder. If no model takes pixels first, the rules of `_without_tower` decide.
    """
    return [_encoding(model, path) for path in _towers(model)]


def inner_towers(model: Any, tower: str) -> list[str]:
    """Return the paths of the image encoders within the one at `tower`."""
    return [f"{tower}.{path}".lstrip(".") for path in find_towers(model.get_submodule(tower)) if path]


def _encoding(model: Any, path: str) -> str:
    """Return the path of an autoencoder's encoder, or the path itself if the module there decodes nothing."""
    module = model.get_submodule(path)
    encoder, decoder = (getattr(module, name, None) for name in ("encoder", "decoder"))
    if isinstance(encoder, nn.Module) and isinstance(decoder, nn.Module) and takes_pixels(encoder):
        return f"{path}.encoder".lstrip(".")
    return path


def _towers(model: Any) -> list[str]:
    pretrained = require_transformers().PreTrainedModel
    models = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, pretrained) and next(module.parameters(), None) is not None
    }
    found = {path: module for path, module in models.items() if takes_pixels(module)}
    if not found:
        return _without_tower(model, models)
    own = {path: module for path, module in found.items() if type(module.config) is not type(model.config)}
    if not own:
        innermost = [path for path in found if not any(_holds(path, other) for other in found)]
        return _of_timm(model) or _whole_backbones(found) or innermost
    outer = {
        path: module
        for path, module in own.items()
        if not any(_holds(other, path) and type(own[other].config) is type(module.config) for other in own)
    }
    ranks = {type(config): rank for rank, config in reversed(list(_encoders(model.config)))}
    known = {path for path, module in outer.items() if type(module.config) in ranks}
    inner = {
        path: module
        for path, module in outer.items()
        if not any(_holds(path, other) and other in known for other in outer)
        and not any(_holds(other, path) and path not in known for other in outer)
    }
    counts = {path: sum(each.numel() for each in module.parameters()) for path, module in inner.items()}
    worst = len(ENCODER_KEYS)
    return sorted(inner, key=lambda path: (ranks.get(type(inner[path].config), worst), -counts[path]))


def _of_timm(model: Any) -> list[str]:
    """Return the outermost modules that are networks of timm."""
    networks = (path for path, module in model.named_modules() if type(module).__module__.startswith("timm.models."))
    return _outermost(path for path in networks if path)


def _whole_backbones(models: Mapping[str, Any]) -> list[str]:
    """Return the paths of the models that transformers calls backbones: they return maps, with the norms of these."""
    mixin = private("backbone_utils", "BackboneMixin")
    return _outermost(path for path, module in models.items() if isinstance(module, mixin))


def _without_tower(model: Any, models: Mapping[str, Any]) -> list[str]:
    """Return the paths of what encodes images in a model without an inner model that takes pixels first.

    These are the outermost modules that take pixels first and have blocks, or else the models whose class says that
    they take pixels. Otherwise a model with image features has a patch embedding for them: a module that takes pixels
    first, or the only linear layer that takes a whole patch. Otherwise a model that may run on pixels alone counts.
    """
    plain = [path for path, module in model.named_modules() if path and takes_pixels(module)]
    found = _outermost(path for path in plain if find_layers(model.get_submodule(path)))
    found = found or _outermost(path for path, each in models.items() if path and takes_pixels(each, named=False))
    if not found and hasattr(model, "get_image_features"):
        found = _outermost(plain) or _linear_patches(model)
    return found or [""] * joins(model)


def _linear_patches(model: Any) -> list[str]:
    """Return the path of the only linear layer whose input is the pixels of one patch, or []."""
    patch = setting(model.config, "patch_size") or 0
    numbers = channels_of(model.config) * patch**2
    layers = [
        path for path, each in model.named_modules() if isinstance(each, nn.Linear) and each.in_features == numbers
    ]
    return layers if len(layers) == 1 else []


def joins(module: Any) -> bool:
    """Return whether a model takes text and pixels in one sequence, and declares none of them as required."""
    parameters = inspect.signature(module.forward).parameters
    optional = all(
        each.default is not inspect.Parameter.empty or each.kind is inspect.Parameter.VAR_KEYWORD
        for each in parameters.values()
    )
    return optional and {"input_ids", PIXELS[0]} <= parameters.keys() and next(iter(parameters)) != PIXELS[0]


def _outermost(paths: Iterable[str]) -> list[str]:
    """Return the paths that lie within no other one. They come with the outer ones first."""
    found: list[str] = []
    for path in paths:
        if not any(_holds(outer, path) for outer in found):
            found.append(path)
    return found


def config_of(model: Any, tower: str) -> Any:
    """Return the config of the image encoder at a path.

    It is the encoder's own or that of the nearest module around it, if it is not of the whole model's type. Otherwise
    it is the first one under a key of `ENCODER_KEYS`.
    """
    own = getattr(model.get_submodule(tower), "config", None)
    if own is not None:
        return own
    path = tower
    while path:
        path = path.rpartition(".")[0]
        around = getattr(model.get_submodule(path), "config", None)
        if around is not None and type(around) is not type(model.config):
            return around
    return encoder_config(model.config)


def encoder_config(config: Any) -> Any:
    """Return the config of the image encoder in a config: the first under a key of `ENCODER_KEYS`, or itself."""
    ranked = sorted(_encoders(config), key=lambda pair: pair[0])
    return next((found for _, found in ranked), config)


def _holds(outer: str, inner: str) -> bool:
    return outer != inner and _within(inner, outer)


def _within(inner: str, outer: str) -> bool:
    return not outer or inner.startswith(f"{outer}.")


def _encoders(config: Any) -> Iterator[tuple[int, Any]]:
    """Yield every config within a config that an image encoder may have, with the rank of its key."""
    for key, value in vars(config).items():
        if not hasattr(value, "model_type"):
            continue
        if key in ENCODER_KEYS:
            yield ENCODER_KEYS.index(key), value
        yield from _encoders(value)


# ---- its layers -----------------------------------------------------------------------------------------------


def find_layers(tower: Any) -> list[nn.Module]:
    """Return the blocks of an image encoder, or [] if it has no list of equal modules.

    They are the members of a list of modules of one class: of a class that transformers records as hidden states if
    there is one, or else of any class that runs. An outer list comes before the lists within its members, and then
    the list with the most parameters counts.
    """
    recorded = _recorded(tower)
    lists: dict[str, list[nn.Module]] = {}
    for path, module in tower.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(_within(path, outer) for outer in lists):
            continue
        members = list(module)
        if members and all(isinstance(each, nn.ModuleList) and len(each) for each in members):
            members = [
                list(each)[-1] for each in members if isinstance(each, nn.ModuleList)
            ]  # a stage ends with its last block
        runs = [type(each).forward is not nn.Module.forward for each in members if not isinstance(each, nn.ModuleList)]
        if members and len({type(each) for each in members}) == 1 and len(runs) == len(members) and all(runs):
            lists[path] = members
    named = {path: each for path, each in lists.items() if type(each[0]) in recorded}
    if recorded and not named:  # within the members of an outer list
        groups = [
            list(module)
            for module in tower.modules()
            if isinstance(module, nn.ModuleList) and len(module) and all(type(each) in recorded for each in module)
        ]
        named = {str(i): group for i, group in enumerate(groups)}
    chosen = (named or lists).values()
    return max(chosen, key=lambda members: sum(p.numel() for each in members for p in each.parameters()), default=[])


def _recorded(tower: Any) -> set[type]:
    """Return the classes whose outputs transformers records as hidden states."""
    classes: set[type] = set()
    for module in tower.modules():
        records = getattr(module, "_can_record_outputs", None) or {}
        record = records.get("hidden_states") if isinstance(records, Mapping) else None
        for each in record if isinstance(record, list | tuple) else [record]:
            target = getattr(each, "target_class", each)
            if inspect.isclass(target):
                classes.add(target)
    return classes


def setting(config: Any, *names: str) -> int | None:
    """Return the first of a config's settings that is a whole number, or the last of several whole numbers."""
    for name in names:
        value = getattr(config, name, None)
        value = value[-1] if isinstance(value, list | tuple) and value else value
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def channels_of(config: Any) -> int:
    """Return the number of channels of the images that a config says the encoder takes, or 3."""
    return setting(config, *CHANNELS) or 3


def image_size(config: Any) -> tuple[int, int]:
    """Return (H, W) that a config says the encoder was trained at, or 224 pixels."""
    for name in SIZES:
        value = getattr(config, name, None)
        if isinstance(value, Mapping):
            value = (value.get("height"), value.get("width"))
        sides = (value, value) if isinstance(value, int) else value
        if isinstance(sides, list | tuple) and len(sides) > 1 and all(isinstance(s, int) and s > 0 for s in sides[-2:]):
            return sides[-2], sides[-1]
    return 224, 224


def set_image_size(config: Any, size: tuple[int, int]) -> bool:
    """Write another image size into an encoder's config, in the form that it has there. Return whether it has one."""
    for name in SIZES:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            written: Any = size[0] if size[0] == size[1] else size
        elif isinstance(value, Mapping):
            written = {"height": size[0], "width": size[1]}
        elif isinstance(value, list | tuple) and len(value) == 2:
            written = list(size) if isinstance(value, list) else size
        else:
            continue
        if image_size(config) == size:
            return False
        try:
            setattr(config, name, written)
        except Exception:  # some configs accept one side alone, and say so in errors of their own
            return False
        return True
    return False


def fill_buffers(encoder: nn.Module) -> None:
    """Compute the tables that timm's networks made beside their parameters, on the meta device.

    Raises `ValueError` if a module cannot compute its tables again.
    """
    for path, module in encoder.named_modules():
        lacking = [name for name, each in module.named_buffers(recurse=False) if each.device.type == "meta"]
        for name in lacking:
            setattr(module, name, torch.empty_like(getattr(module, name), device="cpu"))
        if lacking and not hasattr(module, "init_non_persistent_buffers"):
            raise ValueError(f"{type(encoder).__name__}: nothing computes {path}.{lacking[0]}")
        if lacking:
            cast(Any, module).init_non_persistent_buffers()


def timm_size(encoder: nn.Module) -> tuple[int, int] | None:
    """Return (H, W) that a network of timm within an encoder was built for, or None if there is none."""
    for module in encoder.modules():
        if type(module).__module__.startswith("timm.models."):
            given = getattr(module, "default_cfg", None) or {}
            built = getattr(getattr(module, "patch_embed", None), "img_size", None) or given.get("input_size", ())[-2:]
            return (built[0], built[1]) if len(built) == 2 else None
    return None


def float_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of a module's first parameter that holds floating-point numbers."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
