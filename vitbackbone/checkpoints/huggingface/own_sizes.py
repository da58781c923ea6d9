"""Image processors of transformers that give every photo a size of its own, or cut it into tiles."""

import math
from collections.abc import Callable
from typing import Any

from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.files import SHORT

FILE = "preprocessor_config.json"
LARGEST = 1 << 28  # pixels of an input


def _whole(settings: Json, key: str) -> int:
    value = settings[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
        raise ValueError(f"{FILE} has {key}={SHORT.repr(value)}; want a whole number of 1 to {LARGEST}")
    return value


def _budget(mode: str, multiple: int, least: int, most: int) -> dict[str, Any]:
    side = max(math.isqrt(most) // multiple, 1) * multiple
    return {
        "image_size": (side, side),
        "crop_mode": mode,
        "multiple": multiple,
        "least_pixels": least,
        "most_pixels": most,
    }


def _siglip2(settings: Json) -> dict[str, Any]:
    patch = _whole(settings, "patch_size")
    return _budget("patches", patch, 0, _whole(settings, "max_num_patches") * patch**2)


def _qwen2_vl(settings: Json) -> dict[str, Any]:
    """The bounds lie under `size`, or in older files under names of their own."""
    size = settings["size"] if isinstance(settings["size"], dict) else {}
    named = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
    bounds = {key: settings[key] if settings[key] is not None else value for key, value in named.items()}
    multiple = _whole(settings, "patch_size") * _whole(settings, "merge_size")
    return _budget("area", multiple, _whole(bounds, "min_pixels"), _whole(bounds, "max_pixels"))


def _idefics3(settings: Json) -> dict[str, Any]:
    """Each photo becomes tiles and a squashed whole, of one size. The whole is taken.

    transformers resizes it twice, which differs by at most 3 levels of 255.
    """
    size = settings["max_image_size"]
    side = _whole(size if isinstance(size, dict) else {"longest_edge": size}, "longest_edge")
    return {"image_size": (side, side), "crop_mode": "squash"}


# By class: the fields of `Preprocess` that the settings stand for
OWN_SIZES: dict[str, Callable[[Json], dict[str, Any]]] = {
    "Siglip2ImageProcessor": _siglip2,
    "Qwen2VLImageProcessor": _qwen2_vl,
    "Idefics3ImageProcessor": _idefics3,
    "SmolVLMImageProcessor": _idefics3,
}
