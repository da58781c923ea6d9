"""Converting `preprocessor_config.json` to and from `Preprocess`, like the processor class that the file names."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.huggingface.processor_classes import (
    NO_EFFECT,
    PROCESSORS,
    RESAMPLE,
    UNNAMED,
    Processor,
    square,
)
from vitbackbone.checkpoints.huggingface.processor_sizes import OWN_SIZES
from vitbackbone.files import SHORT
from vitbackbone.images import (
    CropMode,
    Interpolation,
    Preprocess,
    ResizeLibrary,
)

Sides = tuple[int, int]  # (H, W)
Colour = tuple[float, ...]  # one number a channel
FILE = "preprocessor_config.json"
MOST_CHANNELS = 1024
LARGEST = 1e6  # no mean, deviation or factor is larger, or smaller than its inverse


def read_preprocess(processor: Json, default: Preprocess, own_network: bool = True) -> Preprocess:
    """Read the settings of a `preprocessor_config.json` like the processor class that it names.

    `default`: the preprocessing of its model type, which decides the class if the file names none.
    `own_network`: whether it feeds this package's network, and not transformers'.

    The result equals the processor of transformers, which resizes with Pillow or with torchvision. Classes whose name
    ends in "Fast", and classes that only torchvision implements, give `resampling="torchvision"`; others "pillow".
    Files that do not scale pixels to 0 to 1 give "torchvision" too, the default of transformers: the two resizings
    differ by a level of 255, which matters more without scaling.
    Raises `ValueError` that names the key if a class or a setting is unknown or not supported.
    """
    named, resampling = _class(processor)
    name = named or _class_of_model(default)
    kind = PROCESSORS[name] if name else _made_of(default)
    wanted = kind.defaults()
    unknown = [key for key, value in processor.items() if key not in wanted.keys() | NO_EFFECT and _acts(value)]
    if unknown:
        raise ValueError(
            f"{FILE} has {SHORT.repr(unknown[0])[1:-1]}={SHORT.repr(processor[unknown[0]])}, which "
            f"{name or 'its processor'} does not know: not supported. Remove the key if it does not matter"
        )
    settings = wanted | {key: value for key, value in processor.items() if value is not None}
    for key in [key for key in settings if key.startswith("do_")]:
        _flag(settings, key)
    if not settings["do_resize"]:
        raise ValueError(
            f"{FILE} has do_resize=False; only True is supported, because photos would keep their own sizes"
        )
    mean, std = _normalisation(settings)
    if kind.rescaled and own_network:
        mean = tuple(value + deviation / 2 for value, deviation in zip(mean, std, strict=True))
        std = tuple(deviation / 2 for deviation in std)
    steps: dict[str, Any] = {
        "interpolation": _interpolation(settings),
        "mean": mean,
        "std": std,
        "crop_rounding": "down",
        "resampling": resampling or ("torchvision" if _scale(settings) != 1 else kind.resampling),
    }
    if name in OWN_SIZES:
        return Preprocess(crop_pct=1.0, **OWN_SIZES[name](settings), **steps)
    mode, resized = _resized(name, settings)
    image_size = _cropped(settings, mode, resized, name)
    _check_padding(settings, mode, image_size)
    preprocess = Preprocess(image_size, image_size[0] / resized[0], mode, **steps)
    if mode != "pad" and preprocess.scaled(image_size) != resized:
        raise ValueError(f"{FILE} has size={settings['size']} and crop_size={settings['crop_size']}: not supported")
    return preprocess


def write_preprocess(preprocess: Preprocess) -> dict[str, Any]:
    """Return a `preprocessor_config.json` for the processor of transformers that does these steps."""
    resized = preprocess.scaled(preprocess.crop)
    squash, crop = preprocess.crop_mode == "squash", resized != preprocess.crop
    kind = ("DeiTImageProcessor" if crop else "ViTImageProcessor") if squash else "BitImageProcessor"
    own: dict[str, Any] = {}
    size = {"height": resized[0], "width": resized[1]} if squash else {"shortest_edge": resized[0]}
    whole = {"height": preprocess.crop[0], "width": preprocess.crop[1]}
    if preprocess.crop_mode == "pad":
        kind, size = "SamImageProcessor", {"longest_edge": max(preprocess.crop)}
        own = {"do_pad": True, "pad_size": whole}
    return {
        "image_processor_type": kind + ("Fast" if preprocess.resampling == "torchvision" else ""),
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": next(number for number, name in RESAMPLE.items() if name == preprocess.interpolation),
        "do_center_crop": preprocess.crop_mode != "pad" and (crop or not squash),
        "crop_size": whole,
        **own,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


# ---- the class ----------------------------------------------------------------------------------------------------


def _class(processor: Json) -> tuple[str | None, ResizeLibrary | None]:
    """Return the class that a file names, or None, and the resampling if the name implies one."""
    named = processor.get("image_processor_type")
    if named is None and isinstance(extractor := processor.get("feature_extractor_type"), str):
        named = extractor.replace("FeatureExtractor", "ImageProcessor")
    if named is None:
        return None, None
    suffix: dict[str, ResizeLibrary] = {"Fast": "torchvision", "Pil": "pillow"}
    name = str(named)
    for ending, resampling in suffix.items():
        if name.removesuffix(ending) in PROCESSORS and name.endswith(ending):
            return name.removesuffix(ending), resampling
    if name not in PROCESSORS:
        raise ValueError(f"{FILE} has image_processor_type={SHORT.repr(named)}; want one of {', '.join(PROCESSORS)}")
    return name, None


def _class_of_model(default: Preprocess) -> str:
    """Return the class that a model type has if its file names none, or "" if no model type has `default`."""
    sized = {replace(known, image_size=default.image_size): name for known, name in UNNAMED.items()}
    return sized.get(default, "")


def _made_of(default: Preprocess) -> Processor:
    """Return a class with the steps of `default`."""
    written = write_preprocess(default)
    return Processor(
        written["resample"],
        default.mean,
        default.std,
        written["size"],
        written["crop_size"],
        written["do_center_crop"],
        default_to_square=default.crop_mode != "center",
        own={key: written[key] for key in ("do_pad", "pad_size") if key in written},
        resampling=default.resampling,
    )


def _acts(value: object) -> bool:
    """Return whether an unknown setting may have an effect: null and false switch nothing on."""
    return value is not None and value is not False


# ---- geometry -----------------------------------------------------------------------------------------------------


def _resized(name: str, settings: Json) -> tuple[CropMode, Sides]:
    """Return how photos are resized, and to what size: both sides for "squash", the shorter side for "center", the
    longer side for "pad"."""
    size = _size(settings, "size", settings["default_to_square"])
    short = size.get("shortest_edge")
    if name == "SamImageProcessor" and size.keys() == {"longest_edge"}:
        return "pad", (size["longest_edge"],) * 2
    if name == "ConvNextImageProcessor" and short:
        if short >= 384:  # transformers' own rule
            return "squash", (short, short)
        return "center", (int(short / _fraction(settings, "crop_pct")),) * 2
    if name == "LevitImageProcessor" and short:
        return "center", (int(256 / 224 * short),) * 2
    if name == "PoolFormerImageProcessor" and (short or size.keys() == {"height", "width"}):
        scale = _fraction(settings, "crop_pct")
        if short or size["height"] == size["width"]:
            return "center", (int((short or size["height"]) / scale),) * 2
        return "squash", (int(size["height"] / scale), int(size["width"] / scale))
    if name == "ConvNextImageProcessor" or name == "SamImageProcessor":
        wanted = "shortest_edge" if name.startswith("Conv") else "longest_edge"
        raise ValueError(f"{FILE} has size={SHORT.repr(settings['size'])}; {name} wants {wanted}")
    if size.keys() == {"height", "width"}:
        return "squash", (size["height"], size["width"])
    if size.keys() == {"shortest_edge"}:
        return "center", (size["shortest_edge"],) * 2
    raise ValueError(
        f"{FILE} has size={SHORT.repr(settings['size'])}, which gives every photo its own size: not supported; want "
        "height and width, or shortest_edge with a crop"
    )


def _cropped(settings: Json, mode: CropMode, resized: Sides, name: str) -> Sides:
    """Return the (H, W) of the input, after the crop."""
    own = resized
    if name == "ConvNextImageProcessor" and mode == "center":  # this class always crops
        own = (_size(settings, "size", False)["shortest_edge"],) * 2
    if not settings["do_center_crop"]:
        if mode == "center" and name != "ConvNextImageProcessor":
            raise ValueError(
                f"{FILE} has size={SHORT.repr(settings['size'])} and do_center_crop=False: it keeps the aspect and "
                "crops nothing, which gives every photo its own size: not supported. Set do_center_crop, or use "
                "preprocess(photo, keep_aspect=True)"
            )
        return own
    crop = _size(settings, "crop_size", True) if settings["crop_size"] is not None else {}
    if crop.keys() != {"height", "width"}:
        raise ValueError(
            f"{FILE} has crop_size={SHORT.repr(settings['crop_size'])}; want height and width, or a number"
        )
    image_size = crop["height"], crop["width"]
    fits = image_size[0] * resized[1] == image_size[1] * resized[0] and image_size[0] <= resized[0]
    if mode == "pad" or not fits or (own != resized and own != image_size):
        raise ValueError(
            f"{FILE} has crop_size={SHORT.repr(settings['crop_size'])}: it crops {image_size} from {own}; want the "
            "same shape, and not larger"
        )
    return image_size


def _check_padding(settings: Json, mode: CropMode, image_size: Sides) -> None:
    """Raise `ValueError` unless padding at the right and bottom gives all photos one size, as for SAM."""
    pad = _size(settings, "pad_size", True) if settings["pad_size"] is not None else {}
    if not settings["do_pad"]:
        if mode == "pad":
            raise ValueError(f"{FILE} has do_pad=False, which gives every photo its own size: not supported")
        return
    if pad.keys() == {"height", "width"} and (pad["height"], pad["width"]) == image_size:
        return
    if mode == "pad" or pad:
        raise ValueError(
            f"{FILE} has pad_size={SHORT.repr(settings['pad_size'])} for images of {image_size}: not supported; want "
            "the same size"
        )


def _size(settings: Json, key: str, to_square: bool) -> dict[str, int]:
    """Return a size under transformers' names for its sides, from any of its spellings."""
    size = settings[key]
    if isinstance(size, Mapping):
        return {str(name): _length(side, key, size) for name, side in size.items() if side is not None}
    if isinstance(size, list | tuple) and len(size) == 2:
        return {"height": _length(size[0], key, size), "width": _length(size[1], key, size)}
    side = _length(size, key, size)
    return square(side) if to_square else {"shortest_edge": side}


# ---- values -------------------------------------------------------------------------------------------------------


def _length(value: object, key: str, whole: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**16:
        raise ValueError(f"{FILE} has {key}={SHORT.repr(whole)}; want whole numbers of 1 to {2**16} pixels")
    return value


def _flag(settings: Json, key: str) -> None:
    if not isinstance(settings[key], bool):
        raise ValueError(f"{FILE} has {key}={SHORT.repr(settings[key])}; want true or false")


def _number(settings: Json, key: str) -> float:
    value = settings[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{FILE} has {key}={SHORT.repr(value)}; want a number")
    if value and not 1 / LARGEST < abs(value) < LARGEST:
        raise ValueError(f"{FILE} has {key}={value}; want 0, or a number between {1 / LARGEST:g} and {LARGEST:g}")
    return float(value)


def _fraction(settings: Json, key: str) -> float:
    value = _number(settings, key)
    if not 0 < value <= 1:
        raise ValueError(f"{FILE} has {key}={value}; want more than 0 and at most 1")
    return value


def _interpolation(settings: Json) -> Interpolation:
    number = settings["resample"]
    if isinstance(number, bool) or not isinstance(number, int) or number not in RESAMPLE:
        raise ValueError(f"{FILE} has resample={SHORT.repr(number)}; want one of {RESAMPLE}")
    return RESAMPLE[number]


def _colour(settings: Json, key: str) -> Colour:
    """Return one number for each channel, from a list or from one number for three channels."""
    value = settings[key]
    values = [*value] * (3 if len(value) == 1 else 1) if isinstance(value, list | tuple) else [value] * 3
    if not 0 < len(values) <= MOST_CHANNELS:
        raise ValueError(f"{FILE} has {key}={SHORT.repr(value)}; want a number for each channel, or one")
    return tuple(_number({key: each}, key) for each in values)


def _scale(settings: Json) -> float:
    """Return the value of white after rescaling, 1 by default."""
    if not settings["do_rescale"]:
        return 255.0
    scale = _number(settings, "rescale_factor") * 255
    if scale <= 0:
        raise ValueError(f"{FILE} has rescale_factor={SHORT.repr(settings['rescale_factor'])}; want more than 0")
    return 1.0 if math.isclose(scale, 1, rel_tol=1e-6) else scale


def _normalisation(settings: Json) -> tuple[Colour, Colour]:
    """Return the mean and std for pixels from 0 to 1 that equal all steps of the processor on pixels from 0 to 255: a
    rescaling, minus 1 (EfficientNet's `rescale_offset`), normalisation, another division by std (`include_top`)."""
    scale = _scale(settings)
    offset = float(settings["do_rescale"] and settings.get("rescale_offset", False))
    mean: Colour = (0.0, 0.0, 0.0)
    std: Colour = (1.0, 1.0, 1.0)
    if settings["do_normalize"]:
        mean, std = _colour(settings, "image_mean"), _colour(settings, "image_std")
    again = _colour(settings, "image_std") if settings.get("include_top", False) else (1.0,) * len(std)
    if len(mean) != len(std):
        raise ValueError(
            f"{FILE} has {len(mean)} values of image_mean and {len(std)} of image_std; want the same number"
        )
    if 0 in (*std, *again):
        raise ValueError(f"{FILE} has image_std={SHORT.repr(settings['image_std'])}; want no zero")
    return (
        tuple((value + offset) / scale for value in mean),
        tuple(value * twice / scale for value, twice in zip(std, again, strict=True)),
    )
