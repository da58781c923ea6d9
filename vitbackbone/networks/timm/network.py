"""Building a timm network, and copies of it for other image sizes that share its parameters.

Some networks are made for one image size: position tables, windows and grids follow from `img_size`. For another size,
timm builds the network again and resizes the tables. So does this module, once for each size.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitbackbone.networks.timm.private import timm_class
from vitbackbone.networks.timm.tables import Resize, Size, Target, table_rule

Create = Callable[[Size | None], nn.Module]  # builds the network for an image size, or for its native one
KEPT = 16  # copies that are kept, for the sizes used last


class WithoutInit(TorchFunctionMode):
    """Skip the initialisation of parameters, for a network whose parameters are replaced at once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        in_place = getattr(func, "__name__", "").endswith("_") and not getattr(func, "__name__", "").endswith("__")
        if in_place and args and isinstance(args[0], nn.Parameter):
            return args[0]
        return func(*args, **(kwargs or {}))


class SizeRefused(ValueError):
    """The network cannot be built for an image size."""


@dataclass
class _Table:
    """A parameter of a copy that differs in shape from the network's own."""

    module: nn.Module
    attribute: str
    name: str
    resize: Resize
    target: Target
    made_of: tuple[int, int] | None = None  # the parameter, and its version, that the copy's tensor was made of
    value: Tensor | None = None

    def update(self, parameter: Tensor) -> None:
        """Resize the network's parameter and set it in the copy."""
        if torch.is_grad_enabled() and parameter.requires_grad:
            object.__setattr__(self.module, self.attribute, self.resize(parameter, self.target))
            self.made_of = None
            return
        state = id(parameter), 0 if parameter.is_inference() else parameter._version
        if self.made_of != state or self.value is None or self.value.dtype != parameter.dtype:
            with torch.inference_mode(False), torch.no_grad():
                self.value = self.resize(parameter.detach(), self.target)
            self.made_of = state
        object.__setattr__(self.module, self.attribute, self.value)


class _Copy:
    """A network for one image size, with the parameters of another."""

    def __init__(self, network: nn.Module, model: nn.Module, sizes: tuple[Size, Size], antialias: bool) -> None:
        self.network = network
        self.tables: list[_Table] = []
        modules = dict(model.named_modules())
        for path, attribute, resize in differing(network, model):
            module = network.get_submodule(path)
            shape = tuple(getattr(module, attribute).shape)
            del module._parameters[attribute]
            target = Target(shape, sizes, (modules[path], module), antialias)
            self.tables.append(_Table(module, attribute, f"{path}.{attribute}".lstrip("."), resize, target))
        self.shared = [
            (module, attribute, f"{path}.{attribute}".lstrip("."))
            for path, module in network.named_modules()
            for attribute, value in module._parameters.items()
            if value is not None
        ]

    def follow(self, model: nn.Module) -> nn.Module:
        """Give the copy the network's present parameters, buffers and modes, and return it."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for module, attribute, name in self.shared:
            module._parameters[attribute] = parameters[name]
        for table in self.tables:
            table.update(parameters[table.name])
        like = next(iter(parameters.values()))
        for ours, theirs in zip(self.network.modules(), model.modules(), strict=True):
            ours.training = theirs.training
            if getattr(ours, "attention_bias_cache", None):
                object.__setattr__(ours, "attention_bias_cache", {})
            for name, buffer in ours._buffers.items():
                temporary = name in ours._non_persistent_buffers_set
                ours._buffers[name] = _buffer(buffer, theirs._buffers.get(name), temporary, like)
        return self.network


def _buffer(ours: Tensor | None, theirs: Tensor | None, temporary: bool, like: Tensor) -> Tensor | None:
    """Return the buffer of a copy: the one that the weights hold, or one computed for the copy's size."""
    if ours is None or (theirs is not None and theirs.shape == ours.shape and not temporary):
        return theirs
    dtype = ours.dtype if theirs is None or not ours.is_floating_point() else theirs.dtype
    device = like.device if theirs is None else theirs.device
    return ours.to(device, dtype)


def differing(network: nn.Module, model: nn.Module) -> list[tuple[str, str, Resize]]:
    """Return the module, the attribute and the rule of each parameter whose shape differs between two image sizes.

    Raises `SizeRefused` if such a parameter is not a table of positions, or if the networks have other parameters.
    """
    theirs = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    ours = {name: parameter.shape for name, parameter in network.named_parameters(remove_duplicate=False)}
    if ours.keys() != theirs.keys():
        changed = sorted(ours.keys() ^ theirs.keys())
        raise SizeRefused(
            f"its modules were replaced, for example at {changed[0]}, so that it cannot be built for another size"
        )
    found = []
    for name in (name for name, shape in ours.items() if shape != theirs[name]):
        path, _, attribute = name.rpartition(".")
        resize = table_rule(attribute)
        if resize is None:
            raise SizeRefused(f"its parameter {name} depends on the number of patches and is not a table of positions")
        found.append((path, attribute, resize))
    return found


class SizedCopies:
    """Copies of a network for other image sizes. They share its parameters and add none.

    `create`: builds the network for a size. `native`: the size that the network itself was built for.
    `antialias`: whether bicubic tables of positions are resized with antialiasing.
    """

    def __init__(self, create: Create, native: Size, antialias: bool = True) -> None:
        self.create = create
        self.native = native
        self.antialias = antialias
        self.copies: OrderedDict[Size, _Copy] = OrderedDict()

    def __reduce__(self) -> Any:  # copies are made again where the backbone is copied to
        return SizedCopies, (self.create, self.native, self.antialias)

    def at(self, model: nn.Module, size: Size) -> nn.Module:
        """Return the network for images of `size`, with the parameters of `model`.

        Raises `SizeRefused` if it cannot be built for this size.
        """
        if size == self.native:
            return model
        copy = self.copies.pop(size, None) or self.make(model, size)
        self.copies[size] = copy
        while len(self.copies) > KEPT:
            self.copies.popitem(last=False)
        return copy.follow(model)

    def make(self, model: nn.Module, size: Size) -> _Copy:
        """Build a copy for a size, without weights."""
        try:
            with torch.device("cpu"), torch.inference_mode(False), WithoutInit():
                network = self.create(size)
        except Exception as error:  # every network has its own error for a size that it does not accept
            raise SizeRefused(f"timm cannot build it for images of {size[0]} x {size[1]}: {error}") from error
        return _Copy(network.requires_grad_(False), model, (self.native, size), self.antialias)


def for_size(create: Callable[[Size], Any], size: Size) -> Any:
    """Build a network for an image size.

    timm builds some networks only for squares, although they have a table for each axis (MViTv2). For other sizes, the
    tables of each axis come from the square of that side.
    """
    try:
        network = create(size)
    except AssertionError:
        if size[0] == size[1]:
            raise
        network, wide = create((size[0], size[0])), create((size[1], size[1]))
        pairs = [pair for pair in zip(network.modules(), wide.modules(), strict=True) if hasattr(pair[0], "rel_pos_w")]
        if not pairs:
            raise
        for ours, theirs in pairs:
            ours.rel_pos_w = theirs.rel_pos_w
    fit_to_grid(network, size)
    return network


def fit_to_grid(network: Any, size: Size) -> None:
    """Set the grid of these images in attention layers that timm builds for one fixed grid."""
    for module in network.modules():
        if isinstance(module, timm_class("ConViT attention")):
            h, w = network.patch_embed.grid_size
            module.rel_indices = _differences(h, w)
        if isinstance(module, timm_class("EfficientFormer attention")):
            h, w = (math.ceil(side / network.feature_info[-1]["reduction"]) for side in size)
            index = _differences(h, w)[0].abs().long()
            heads = module.attention_biases.shape[0]
            module.resolution = h, w
            module.attention_biases = nn.Parameter(torch.empty(heads, h * w))
            del module.attention_bias_idxs
            module.register_buffer("attention_bias_idxs", index[..., 1] * w + index[..., 0], persistent=False)


def _differences(h: int, w: int) -> Tensor:
    """Return (1, h*w, h*w, 3) differences of positions: in columns, in rows, and the sum of their squares."""
    places = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), dim=-1).flatten(0, 1)
    rows, columns = (places[None] - places[:, None]).float().unbind(-1)
    return torch.stack([columns, rows, columns**2 + rows**2], dim=-1)[None]
