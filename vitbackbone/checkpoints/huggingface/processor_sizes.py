"""Image processors of transformers that give every photo a size of its own, or cut it into tiles."""

import math
from collections.abc import Callable
from typing import Any

from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.files import SHORT
from vitbackbone.images import LONG

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
    """The bounds are under `size`, or in older files under names of their own."""
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


def _patch(settings: Json) -> int:
    """Return the side of a patch, which may be written as height and width."""
    patch = settings["patch_size"]
    if isinstance(patch, dict) and len({*patch.values()}) == 1:
        return _whole({"patch_size": next(iter(patch.values()))}, "patch_size")
    return _whole(settings, "patch_size")


def _gemma4(settings: Json) -> dict[str, Any]:
    multiple = _patch(settings) * _whole(settings, "pooling_kernel_size")
    return _budget("budget", multiple, 0, _whole(settings, "max_soft_tokens") * multiple**2)


def _pixtral(settings: Json) -> dict[str, Any]:
    size = settings["size"] if isinstance(settings["size"], dict) else {"longest_edge": settings["size"]}
    sides = {value for value in size.values() if value is not None}
    if len(sides) != 1:
        raise ValueError(f"{FILE} has size={SHORT.repr(settings['size'])}; want longest_edge, or a square")
    side = _whole({"size": sides.pop()}, "size")
    return _budget("square", _patch(settings), 0, side**2)


def _kimi(settings: Json) -> dict[str, Any]:
    patch, most = _patch(settings), _whole(settings, "max_patches")
    size = settings["size"] if isinstance(settings["size"], dict) else {}
    if {size.get("max_height"), size.get("max_width")} != {LONG * math.isqrt(most)}:
        raise ValueError(
            f"{FILE} has size={SHORT.repr(settings['size'])} for max_patches={most}; want max_height and max_width of "
            f"{LONG} times its square root"
        )
    return _budget("canvas", patch * _whole(settings, "merge_size"), patch**2, most * patch**2)


def _llama4(settings: Json) -> dict[str, Any]:
    """Each photo becomes tiles and a squashed whole, of one size. The whole is taken."""
    size = settings["size"]
    sides = size if isinstance(size, dict) else {"height": size, "width": size}
    if sides.keys() != {"height", "width"}:
        raise ValueError(f"{FILE} has size={SHORT.repr(size)}; want height and width")
    return {"image_size": (_whole(sides, "height"), _whole(sides, "width")), "crop_mode": "squash"}


def _idefics2(settings: Json) -> dict[str, Any]:
    """Each photo has a size of its own. A processor of transformers also pads it to the largest of its batch."""
    size = settings["size"] if isinstance(settings["size"], dict) else {}
    edges = {key: _whole({key: size.get(key)}, key) for key in ("shortest_edge", "longest_edge")}
    return _budget("edges", 1, edges["shortest_edge"] ** 2, edges["longest_edge"] ** 2)


# By class: the fields of `Preprocess` that the settings stand for
OWN_SIZES: dict[str, Callable[[Json], dict[str, Any]]] = {
    "Siglip2ImageProcessor": _siglip2,
    "Qwen2VLImageProcessor": _qwen2_vl,
    "Idefics3ImageProcessor": _idefics3,
    "SmolVLMImageProcessor": _idefics3,
    "Gemma4ImageProcessor": _gemma4,
    "PixtralImageProcessor": _pixtral,
    "Kimi_K25ImageProcessor": _kimi,
    "Llama4ImageProcessor": _llama4,
    "Idefics2ImageProcessor": _idefics2,
}
