"""Finding the image encoders of a transformers model, and the config of each.

They are found by the rules stated at each function, never by a model's name.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from vitbackbone.networks.transformers.parts import (
    GRID,
    PIXELS,
    arguments,
    channels_of,
    find_layers,
    private,
    require_transformers,
    setting,
    within,
)

# The names under which a config holds the config of its image encoder, the preferred one first
ENCODER_KEYS = (
    "vision_config", "image_config", "backbone_config", "encoder", "vision_tower_config", "image_encoder_config",
    "image_model_config", "vision_encoder_config",
)  # fmt: skip


def takes_pixels(module: Any, named: bool = True) -> bool:
    """Return whether a module's first argument is images, or packed patches with their grid.

    `named`: whether the argument has a name for pixels. Otherwise the class says that it takes pixels.
    """
    names = arguments(module)
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
    config, the encoder is a network of timm, else a backbone class (its maps have norms of their own), else the
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
    they take pixels. Otherwise, a model with image features has a patch embedding. It is a module that takes pixels
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

    It is the encoder's own config. An encoder without one has the config of the nearest module around it, unless that
    has the whole model's type. Otherwise it is the first one under a key of `ENCODER_KEYS`.
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
    return outer != inner and within(inner, outer)


def _encoders(config: Any) -> Iterator[tuple[int, Any]]:
    """Yield every config within a config that an image encoder may have, with the rank of its key."""
    for key, value in vars(config).items():
        if not hasattr(value, "model_type"):
            continue
        if key in ENCODER_KEYS:
            yield ENCODER_KEYS.index(key), value
        yield from _encoders(value)
