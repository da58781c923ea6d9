"""The arguments of transformers' image encoders, made of a batch of images (B, 3, H, W).

Most encoders take the batch as it is. Some take packed patches with their grid, or a sequence of padded patches. The
model type's own image processor makes these, with resizing and normalisation switched off.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from vitbackbone.networks.transformers.layout import Size
from vitbackbone.networks.transformers.parts import GRID, PIXELS, channels_of, private, setting
from vitbackbone.networks.transformers.towers import joins

# What an argument of an encoder is called in the result of an image processor
PROCESSED = {
    GRID: ("image_grid_thw", "grid_thws", "grid_thw", "image_grid_hw"),
    "image_grid_hw": ("image_grid_hw", "image_grid_thw"),
    "image_grid_thw": ("image_grid_thw",),
    "spatial_shapes": ("spatial_shapes",),
    "pixel_attention_mask": ("pixel_attention_mask",),
    "attention_mask": ("attention_mask", "pixel_attention_mask"),
    "pixel_position_ids": ("pixel_position_ids", "image_position_ids"),
    "image_position_ids": ("image_position_ids",),
    "merge_sizes": ("image_merge_sizes", "merge_sizes"),
    "aspect_ratio_ids": ("aspect_ratio_ids",),
    "aspect_ratio_mask": ("aspect_ratio_mask",),
}
OFF = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_center_crop", "do_image_splitting")
VIDEOS_ALONE = "takes only videos"
MASKS = ("attention_mask", "bool_masked_pos", "head_mask")
TARGETS = "target_sizes"
ANY_SIZE = "interpolate_pos_encoding"
MERGED = "model_patch_size"  # the side in pixels of several patches that the image processor merges

Way = Literal["batch", "rows", "strip", "cubes", "clips", "processor"]
WAYS: tuple[Way, ...] = get_args(Way)
# Rows of patches, the channels of a pixel together; patches that are clips; images that are clips
PATTERNS = {
    "rows": "B C (h y) (w x) -> B (h w) (y x C)",
    "cubes": "B C (h y) (w x) -> (B h w) t y x C",
    "clips": "B C H W -> B t C H W",
}


@dataclass(frozen=True)
class Feed:
    """The conversion of a batch to the arguments of one encoder."""

    first: str  # the argument that takes the pixels
    way: Way = "batch"
    extras: tuple[str, ...] = ()  # the arguments that an image processor makes beside the pixels
    processor: Any = None  # None: the encoder takes the batch as it is
    patch: int = 1  # side of a packed patch in pixels
    unit: int = 1  # sides of images are multiples of it
    frames: int = 1  # frames of a patch; an image fills each of them
    linear: bool = False  # whether a linear layer embeds whole patches
    lead: bool = False  # whether packed patches have an axis of length 1 in front
    absent: tuple[str, ...] = ()  # masks that must be given, as None
    any_size: bool = False  # whether the encoder has a switch for other sizes than its own
    native: Size = (224, 224)

    @property
    def packed(self) -> bool:
        """Whether the images of a batch are one sequence of patches."""
        return self.way in ("strip", "cubes") or GRID in self.extras

    def __call__(self, images: Float[Tensor, "B C H W"]) -> dict[str, Any]:
        """Return the encoder's arguments."""
        size = (images.shape[2], images.shape[3])
        options: dict[str, Any] = dict.fromkeys(self.absent)
        if self.any_size and size != self.native:
            options[ANY_SIZE] = True
        if self.way == "strip":
            return {**self._in_strip(images), **options}
        if self.way == "processor":
            return {**self._processed(images), **options}
        if self.way != "batch":
            axes = {"y": self.patch, "x": self.patch} if self.way in ("rows", "cubes") else {}
            axes |= {"t": self.frames} if self.way in ("clips", "cubes") else {}
            return {self.first: repeat(images, PATTERNS[self.way], **axes), **options}
        return {self.first: images, **options}

    def alternatives(self) -> "list[Feed]":
        """Return this way, and those that take the same arguments otherwise, for an encoder that refuses this one."""
        if self.packed:
            return [self, replace(self, lead=True)]
        if self.way != "batch":
            return [self]
        fit = {"rows": self.linear, "cubes": self.frames > 1 and self.patch > 1, "clips": self.frames > 1}
        others = [replace(self, way=way, unit=1 if way == "clips" else self.patch) for way in WAYS if fit.get(way)]
        return [self, *others]

    def _in_strip(self, images: Float[Tensor, "B C H W"]) -> dict[str, Any]:
        p = self.patch
        strip = rearrange(images, "B C (h y) (w x) -> C y (B h w x)", y=p, x=p)[None]
        grid = torch.tensor([[images.shape[2] // p, images.shape[3] // p]] * len(images))
        return {self.first: strip, TARGETS: grid if images.device.type == "meta" else grid.to(images.device)}

    def _processed(self, images: Float[Tensor, "B C H W"]) -> dict[str, Any]:
        count = (images.shape[2] // self.patch) * (images.shape[3] // self.patch)
        # The processor's tables are on the CPU
        limits = _limits(self.processor, count, images.shape[2] * images.shape[3])
        made = self.processor(images=list(images), return_tensors="pt", **limits)
        named = dict(made)
        pixels = next((named[key] for key in (*PIXELS, self.first) if key in named), None)
        if pixels is None:
            raise ValueError(f"{type(self.processor).__name__} returns {', '.join(named)}, and no pixels")
        arguments = {self.first: _tensor(pixels).to(images.device, images.dtype)}
        for extra in self.extras:
            key = next((key for key in PROCESSED[extra] if key in named), None)
            if key is not None:
                arguments[extra] = _tensor(named[key])
        if GRID in arguments and arguments[GRID].shape[-1] == 2:
            arguments[GRID] = torch.nn.functional.pad(arguments[GRID], (1, 0), value=1)
        for key, value in arguments.items():
            if value.ndim > 1 and value.shape[0] == len(images) and value.shape[1] > count and value.ndim < 4:
                arguments[key] = value[:, :count]  # the processor pads to its budget
            if images.device.type != "meta":
                arguments[key] = arguments[key].to(images.device)
        if self.lead:
            arguments[self.first] = arguments[self.first][None]
        return arguments


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.cat([each if each.ndim > 1 else each[None] for each in map(torch.as_tensor, value)])


def _limits(processor: Any, count: int, pixels: int) -> dict[str, Any]:
    """Return the options that keep a processor from changing the number of patches of an image."""
    names = ("max_num_patches", "max_patches")
    taken = getattr(type(processor).valid_kwargs, "__annotations__", {})
    options = {name: count for name in names if name in taken}
    if getattr(processor, "max_soft_tokens", None) is not None:  # a token is a square of patches
        tokens = -(-pixels // (processor.patch_size * processor.pooling_kernel_size) ** 2)
        allowed = (70, 140, 280, 560, 1120)
        options["max_soft_tokens"] = next((each for each in allowed if each >= tokens), allowed[-1])
    return options


def feed_of(tower: Any, config: Any, model_type: str, native: Size) -> Feed:
    """Return the way of a batch into an encoder.

    `config`: the config of the encoder.
    `model_type`: the type of the whole model, whose image processor packs the patches if the encoder wants packed
    patches.
    Raises `ValueError` if the encoder takes only videos, or arguments that no image processor makes.
    """
    parameters = inspect.signature(tower.forward).parameters
    names = list(parameters)
    first, has_switch = (PIXELS[0] if joins(tower) else names[0]), ANY_SIZE in names
    required = [
        name for name in names[1:]
        if parameters[name].default is inspect.Parameter.empty
        and parameters[name].kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    ]  # fmt: skip
    clips = names[0] == "pixel_values" and setting(config, "num_frames") is not None and GRID not in names
    if clips or first == "pixel_values_videos":
        raise ValueError(f"{type(tower).__name__} {VIDEOS_ALONE}")
    extras = tuple(name for name in names[1:] if name in PROCESSED)
    absent = tuple(name for name in required if name in MASKS)
    required = [name for name in required if name not in MASKS]
    if unknown := [name for name in required if name not in PROCESSED]:
        raise ValueError(f"{type(tower).__name__} wants {', '.join(unknown)} beside the images")
    packs = first == "flattened_patches" or GRID in names or any(name in required for name in extras)
    packs = packs or bool({"pixel_position_ids", "spatial_shapes"} & set(extras)) or TARGETS in names
    patch, merge, frames = _patch(tower, config), _merge(config), _frames(tower, config)
    plain = Feed(first, patch=patch, any_size=has_switch, native=native, absent=absent)
    if not packs:
        clip = setting(config, "temporal_patch_size", "temporal_downsample_factor")
        linear = _is_linear(tower) and _numbers(tower) == channels_of(config) * patch**2
        return replace(plain, frames=clip or 1, linear=linear)
    if TARGETS in names:
        return replace(plain, way="strip", unit=4 * patch)
    processor = _processor(model_type, config, patch, merge, frames, GRID in names)
    return replace(plain, way="processor", extras=extras, processor=processor, unit=patch * merge, absent=())


def processor_settings(model_type: str, config: Any) -> dict[str, Any]:
    """Return the settings of the image processor of a model type, or {} if transformers has none."""
    names: Mapping[str, Any] = private("models.auto.image_processing_auto", "IMAGE_PROCESSOR_MAPPING_NAMES")
    for each in _names_of(model_type, config, gridded=False):
        name = names.get(each)
        name = name.get("torchvision") if isinstance(name, Mapping) else name
        if isinstance(name, str):
            made = private("models.auto.image_processing_auto", "get_image_processor_class_from_name")(name)
            return made().to_dict()
    return {}


def _merge(config: Any) -> int:
    """Return the patches along each side of a square that becomes one token."""
    if setting(config, MERGED):
        return 1
    merge = setting(config, "spatial_merge_size", "merge_size", "pooling_kernel_size")
    kernel = getattr(config, "merge_kernel_size", None)
    return merge or (kernel[-1] if isinstance(kernel, list | tuple) else 1)


def _patch(tower: nn.Module, config: Any) -> int:
    """Return the side of a patch, from the config or from the number of pixels that the patch embedding takes."""
    return setting(config, MERGED, "patch_size") or max(math.isqrt(_numbers(tower) // channels_of(config)), 1)


def _numbers(tower: nn.Module) -> int:
    """Return how many numbers the first layer of an encoder takes at once."""
    layers = (each for each in tower.modules() if isinstance(each, nn.Linear | nn.Conv2d | nn.Conv3d))
    return next((each.weight[0].numel() for each in layers), 0)


def _is_linear(tower: nn.Module) -> bool:
    """Return whether an encoder embeds patches by a linear layer, and not by a convolution."""
    layers = (each for each in tower.modules() if isinstance(each, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d))
    return isinstance(next(layers, None), nn.Linear)


def _frames(tower: nn.Module, config: Any) -> int | None:
    """Return the number of frames of a packed patch, from the config or from the kernel of the patch embedding."""
    if (frames := setting(config, "temporal_patch_size")) is not None:
        return frames
    numbers, pixels = _numbers(tower), channels_of(config) * _patch(tower, config) ** 2
    return numbers // pixels if numbers and numbers % pixels == 0 else None


def _processor(model_type: str, config: Any, patch: int, merge: int, frames: int | None, gridded: bool) -> Any:
    """Return the image processor of a model type, set to the encoder's patches."""
    names: Mapping[str, Any] = private("models.auto.image_processing_auto", "IMAGE_PROCESSOR_MAPPING_NAMES")
    for each in _names_of(model_type, config, gridded):
        name = names.get(each)
        name = name.get("torchvision") if isinstance(name, Mapping) else name
        if isinstance(name, str):
            made = private("models.auto.image_processing_auto", "get_image_processor_class_from_name")(name)
            sizes = {"patch_size": setting(config, "patch_size") or patch, "merge_size": merge}
            if frames is not None:
                sizes["temporal_patch_size"] = frames
            options: dict[str, Any] = {key: value for key, value in sizes.items() if hasattr(made, key)}
            return made(**options, **{key: False for key in OFF if hasattr(made, key)})
    raise ValueError(f"transformers has no image processor of {model_type!r}, which packs the patches of its images")


def _names_of(model_type: str, config: Any, gridded: bool) -> list[str]:
    """Return the model types whose image processor packs the patches of an encoder, the best one first.

    Model types of one package share their processor. An encoder with a grid and no processor takes Qwen2-VL's patches,
    which came first.
    """
    names: Mapping[str, Any] = private("models.auto.image_processing_auto", "IMAGE_PROCESSOR_MAPPING_NAMES")
    package = private("models.auto.configuration_auto", "model_type_to_module_name")
    near = [each for each in names if package(each) in {package(model_type), package(config.model_type)}]
    return list(dict.fromkeys((model_type, config.model_type, *near, *("qwen2_vl",) * gridded)))
