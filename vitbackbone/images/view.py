"""How an input of the network was cut from its photo."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from vitbackbone.images.errors import TooThin as TooThin

Resolution = int | tuple[int, int]  # side of a square, or (H, W)


def sides(size: Resolution, name: str = "resolution") -> tuple[int, int]:
    """Return (H, W) of a size: a number is the side of a square. `name`: the argument, for errors.

    Raises `ValueError` on anything but one or two whole numbers of at least 1.
    """
    given: Any = size  # callers without a type checker pass anything
    pair = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given, given)
    if len(pair) != 2 or not all(isinstance(side, Integral) and not isinstance(side, bool) for side in pair):
        raise ValueError(f"{name}={size!r}; want a whole number of pixels, or (height, width)")
    height, width = int(pair[0]), int(pair[1])
    if min(height, width) < 1:
        raise ValueError(f"{name} must be at least 1 pixel, got {size}")
    return height, width


@dataclass(frozen=True)
class View:
    """How an input of the network was cut from its photo.

    The photo gets a border of `pad`, is resized to `resized`, and is cropped at `offset` to `size`. All sizes are
    (H, W). Coordinates are continuous pixels; (0, 0) is the top-left corner of the image.
    """

    source: tuple[int, int]  # the upright photo
    resized: tuple[int, int]
    offset: tuple[int, int]  # (top, left) of the crop in the resized photo
    size: tuple[int, int]  # the input of the network
    pad: tuple[int, int] = (0, 0)  # pixels added at (top and bottom, left and right), each

    @property
    def padded(self) -> tuple[int, int]:
        """(H, W) of the photo with its border."""
        return self.source[0] + 2 * self.pad[0], self.source[1] + 2 * self.pad[1]

    def to_source(self, x: float, y: float) -> tuple[float, float]:
        """Map a point (x, y) of the network's input to the photo. A point in the border maps outside the photo."""
        return (
            (x + self.offset[1]) * self.padded[1] / self.resized[1] - self.pad[1],
            (y + self.offset[0]) * self.padded[0] / self.resized[0] - self.pad[0],
        )

    def from_source(self, x: float, y: float) -> tuple[float, float]:
        """Map a point (x, y) of the photo to the network's input.

        A point that was cropped away maps outside [0, W) x [0, H).
        """
        return (
            (x + self.pad[1]) * self.resized[1] / self.padded[1] - self.offset[1],
            (y + self.pad[0]) * self.resized[0] / self.padded[0] - self.offset[0],
        )


def check_area(view: View, limit: int | None) -> None:
    """Raise `TooThin` if the photo would have more than `limit` pixels after padding, or as the network's input.

    A long thin photo of few pixels becomes huge if its shorter side is scaled up, or if a border makes it square.
    """
    largest = max(view.padded, view.size, key=math.prod)
    if limit is not None and math.prod(largest) > limit:
        raise TooThin(
            f"too long and thin: {view.source[1]} x {view.source[0]} pixels become {largest[1]} x {largest[0]}, "
            f"more than {limit} pixels"
        )
