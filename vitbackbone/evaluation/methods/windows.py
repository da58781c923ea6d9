"""Overlapping windows over an image whose scores are averaged.

Axes: `K` classes, `H W` pixels.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def starts(side: int, window: int, stride: int) -> list[int]:
    """Return where windows begin. The last one is pushed inside, and a smaller image has one window."""
    count = max(side - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride, side - window), 0) for i in range(count)]


def slide(
    image: Float[Tensor, "3 H W"],
    predict: Callable[[Float[Tensor, "1 3 h w"]], Float[Tensor, "1 K h w"]],
    window: int,
    stride: int,
) -> Float[Tensor, "K H W"]:
    """Return the mean scores of the windows over each pixel. `predict` gives scores at the size of its input.

    (mmsegmentation, `slide_inference`) An image that is smaller than the window on both sides is cut into squares of
    its shorter side, as DINOv3's code does.
    """
    height, width = image.shape[1:]
    if height < window and width < window:
        window = min(height, width)
    total: Tensor | None = None
    count = image.new_zeros(height, width)
    for top in starts(height, window, stride):
        for left in starts(width, window, stride):
            bottom, right = min(top + window, height), min(left + window, width)
            scores = predict(image[None, :, top:bottom, left:right])[0]
            if total is None:
                total = scores.new_zeros(scores.shape[0], height, width)
            total[:, top:bottom, left:right] += scores
            count[top:bottom, left:right] += 1
    assert total is not None
    return total / count.to(total)


def enlarged(scores: Float[Tensor, "K h w"], size: tuple[int, int]) -> Float[Tensor, "K H W"]:
    """Resize scores bilinearly to (H, W)."""
    return torch.nn.functional.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
