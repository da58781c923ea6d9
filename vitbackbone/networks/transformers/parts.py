"""The parts of an image encoder of transformers that the adapter needs: its layers, and the settings of its config.

Every private name of transformers that this package reads goes through `private`, so that a transformers that renamed
one raises an error that says so.
"""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

import torch
from torch import nn

CHANNELS = ("num_channels", "in_channels", "in_chans")  # names of the number of channels in a config
SIZES = ("image_size", "img_size", "input_size", "image_resolution", "resolution")  # names of (H, W) in a config
PIXELS = ("pixel_values", "pixel_values_videos", "flattened_patches")
GRID = "grid_thw"  # (time, height, width) in patches of each image, for encoders that take packed patches


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


def arguments(module: Any) -> list[str]:
    """Return the names of the arguments of a module's forward."""
    return [name for name in inspect.signature(module.forward).parameters if name != "self"]


def within(inner: str, outer: str) -> bool:
    """Return whether the module at path `inner` lies within the one at `outer`."""
    return not outer or inner.startswith(f"{outer}.")


def find_layers(tower: Any) -> list[nn.Module]:
    """Return the blocks of an image encoder, or [] if it has no list of equal modules.

    They are the members of a list of modules of one class. A class that transformers records as hidden states comes
    first, and then any class that runs. An outer list comes before the lists within its members, and then
    the list with the most parameters counts.
    """
    recorded = _recorded(tower)
    lists: dict[str, list[nn.Module]] = {}
    for path, module in tower.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(within(path, outer) for outer in lists):
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
        except Exception:  # some configs accept only one side, and say so in errors of their own
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
    """Return the size (H, W) of a timm network within an encoder, or None if there is no such network."""
    for module in encoder.modules():
        if type(module).__module__.startswith("timm.models."):
            given = getattr(module, "default_cfg", None) or {}
            built = getattr(getattr(module, "patch_embed", None), "img_size", None) or given.get("input_size", ())[-2:]
            return (built[0], built[1]) if len(built) == 2 else None
    return None


def float_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of a module's first parameter that holds floating-point numbers."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
