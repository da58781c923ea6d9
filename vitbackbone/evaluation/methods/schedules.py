"""Learning rates over the steps of a training, as factors of the highest rate, and AdamW's first momentum."""

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["poly", "cosine", "one-cycle"]


@dataclass(frozen=True)
class Schedule:
    """A schedule.

    `"poly"`: linear warm-up from `first`, then a line to 0 (mmsegmentation, power 1). `"cosine"`: the same warm-up,
    then a cosine to 0 over all steps (DINOv3's segmentation, where the first two steps have one rate).
    `"one-cycle"`: a cosine from 1/1000 up, then a cosine down to 1/25000. The first momentum is 0, and then goes from
    .85 to .95 (DINOv3's depth, `WarmupOneCycleLR`).
    """

    shape: Shape
    steps: int
    warmup: int
    first: float = 1e-6  # factor at step 0

    def factor(self, step: int) -> float:
        """Return the factor on the rate at a 0-based step."""
        if self.shape == "one-cycle":
            return self._one_cycle(step)
        if self.shape == "cosine":
            step = max(step - 1, 0)
        line = 1 - step / self.steps
        if step < self.warmup:
            return line * (1 - (1 - step / self.warmup) * (1 - self.first))
        return line if self.shape == "poly" else self._cosine(step + 1)

    def beta1(self, step: int, plain: float = 0.9) -> float:
        """Return the first momentum at a step. `plain`: its value in schedules that do not change it."""
        if self.shape != "one-cycle":
            return plain
        if step < self.warmup:
            return 0.0
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return 0.95 + (0.85 - 0.95) / 2 * (1 + math.cos(math.pi * progress))

    def _cosine(self, step: int, end: float = 0.0) -> float:
        return end + (1 - end) / 2 * (1 + math.cos(math.pi * step / self.steps))

    def _one_cycle(self, step: int) -> float:
        if step < self.warmup:
            return 1 / 1000 + self._cosine(step) * step / self.warmup
        return self._cosine(step + 1, 1 / (25 * 1000))
