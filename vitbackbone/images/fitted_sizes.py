"""Sizes of inputs that show a whole photo with nearly its aspect, by the rules of several models.

Each takes the (H, W) of the photo, the multiple that divides both sides, and the least and the most pixels of an input.
"""

import math
from collections.abc import Callable

Size = tuple[int, int]  # (H, W)
LONG = 4  # times the root of the most pixels: the longest side of a canvas


def most_patches(source: Size, multiple: int, least: int, most: int) -> Size:
    """Return the largest size of at most `most` pixels with nearly the aspect of `source`. Sides are rounded up.

    The scale is found as by transformers (image_processing_siglip2.py), for equal sizes.
    """

    def scaled(scale: float) -> Size:
        height, width = (max(multiple, math.ceil(side * scale / multiple) * multiple) for side in source)
        return height, width

    low, high, precision = 1e-6, 100.0, 1e-5
    while high - low >= precision:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(scaled(middle)) <= most else (low, middle)
    return scaled(low)


def nearest_area(source: Size, multiple: int, least: int, most: int) -> Size:
    """Return the size of `source` with sides rounded to multiples, scaled only if its area is out of bounds.

    Rounded as by transformers (image_processing_qwen2_vl.py, `smart_resize`).
    """
    rounded = [round(side / multiple) * multiple for side in source]
    area = math.prod(source)
    if math.prod(rounded) > most:
        shrunk = math.sqrt(area / most)
        rounded = [max(multiple, math.floor(side / shrunk / multiple) * multiple) for side in source]
    elif math.prod(rounded) < least:
        grown = math.sqrt(least / area)
        rounded = [math.ceil(side * grown / multiple) * multiple for side in source]
    height, width = (max(side, multiple) for side in rounded)
    return height, width


def within_budget(source: Size, multiple: int, least: int, most: int) -> Size:
    """Return the largest size of at most `most` pixels with the aspect of `source`. Sides are rounded down.

    Rounded as by transformers (image_processing_gemma4.py). A side that would be 0 is one multiple.
    """
    scale = math.sqrt(most / math.prod(source))
    height, width = (math.floor(scale * side / multiple) * multiple for side in source)
    longest = most // multiple**2 * multiple
    if height == 0:
        return multiple, min(source[1] // source[0] * multiple, longest)
    if width == 0:
        return min(source[0] // source[1] * multiple, longest), multiple
    return height, width


def within_square(source: Size, multiple: int, least: int, most: int) -> Size:
    """Return the size of `source`, shrunk to a square of `most` pixels if it is larger. Sides are rounded up.

    Rounded as by transformers (image_processing_pixtral.py).
    """
    ratio = max(max(source) / math.isqrt(most), 1.0)
    height, width = source if ratio == 1 else (math.floor(side / ratio) for side in source)
    return max(-(-height // multiple), 1) * multiple, max(-(-width // multiple), 1) * multiple


def on_canvas(source: Size, multiple: int, least: int, most: int) -> Size:
    """Return the size of `source`, shrunk to at most `most` pixels, and to sides of at most `LONG` times their root.

    Nothing is rounded to multiples: the canvas around the photo has sides that are. `least`: pixels of a patch.
    Rounded as by transformers (image_processing_kimi_k25.py).
    """
    patch = math.isqrt(least)
    longest = LONG * math.isqrt(most)
    patches = math.prod(max(1.0, side // patch) for side in source)
    scale = min(1.0, math.sqrt(most // least / patches), *(longest / side for side in source))
    height, width = (min(max(1, int(side * scale)), longest) for side in source)
    return height, width


def between_edges(source: Size, multiple: int, least: int, most: int) -> Size:
    """Return the size of `source` within two bounds. The longer side shrinks to the side of a square of `most` pixels,
    and the other one with it. Then each side grows to at least the side of a square of `least` pixels. Nothing is
    rounded to multiples.

    Rounded as by transformers (image_processing_idefics2.py).
    """
    height, width = source
    longest, aspect = math.isqrt(most), source[1] / source[0]
    if width >= height and width > longest:
        height, width = int(longest / aspect), longest
    elif height > longest:
        height, width = longest, int(longest * aspect)
    shortest = math.isqrt(least)
    return max(height, shortest), max(width, shortest)


Fit = Callable[[Size, int, int, int], Size]
FITTED: dict[str, Fit] = {
    "patches": most_patches,
    "area": nearest_area,
    "budget": within_budget,
    "square": within_square,
    "canvas": on_canvas,
    "edges": between_edges,
}
