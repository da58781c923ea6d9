"""The choice of the frames of a video that are read."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Int


@dataclass(frozen=True)
class Sampling:
    """Every frame of a stream, or some of them. At most one field may be given.

    `fps`: frames a second. The frames shown at the times 0, 1/fps, 2/fps, ... after the first frame are taken, each
    frame once. The last time is the time of the last frame.
    `stride`: every `stride`-th frame, from the first on.
    `keyframes`: only frames that are decoded without others.

    Raises `ValueError` on several fields, and on numbers that are not above 0.
    """

    fps: float | None = None
    stride: int | None = None
    keyframes: bool = False

    def __post_init__(self) -> None:
        given = [name for name in ("fps", "stride", "keyframes") if getattr(self, name) not in (None, False)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} were given; want at most one way to choose frames")
        if self.fps is not None and not (self.fps > 0 and math.isfinite(self.fps)):
            raise ValueError(f"fps must be above 0, got {self.fps}")
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"stride must be at least 1, got {self.stride}")

    def choose(
        self, pts: Int[np.ndarray, " N"], time_base: Fraction, keyframe: Bool[np.ndarray, " N"]
    ) -> Int[np.ndarray, " n"]:
        """Return the indices of the chosen frames, ascending. `pts`: ascending, in units of `time_base` seconds."""
        if self.keyframes:
            return np.flatnonzero(keyframe)
        if self.stride is not None:
            return np.arange(0, len(pts), self.stride)
        if self.fps is None or not len(pts):
            return np.arange(len(pts))
        # Frame i is shown until the time of the next frame. It is taken if a multiple of the step falls into that
        # span: if fewer multiples are before its own time than before the next. Whole numbers keep this exact.
        step = 1 / (Fraction(self.fps).limit_denominator(1_000_000) * time_base)
        since = [(int(time) - int(pts[0])) * step.denominator for time in pts]
        before = np.array([-(-time // step.numerator) for time in since], dtype=object)
        return np.flatnonzero(np.append(np.diff(before) > 0, since[-1] % step.numerator == 0))
