"""The losses of depth heads.

Axes: `B` batch, `H W` pixels.
"""

from jaxtyping import Bool, Float
from torch import Tensor

Maps = Float[Tensor, "B 1 H W"]
EPSILON = 0.001  # added before logarithms
STRIDES = (1, 2, 4, 6)  # strides at which the gradient loss compares the maps, as in the authors' code


def gradient_loss(depth: Maps, target: Maps, known: Bool[Tensor, "B 1 H W"]) -> Tensor:
    """Return the mean difference of the log errors of pixels two apart, at four strides, summed.

    (Li & Snavely 2018, MegaDepth; facebookresearch/dinov3, eval/depth/loss.py, `GradientLogLoss`)
    """
    total = depth.new_zeros(())
    for stride in STRIDES:
        p, t, mask = (each[..., ::stride, ::stride] for each in (depth, target, known))
        error = ((p + EPSILON).log() - (t + EPSILON).log()) * mask
        steps = _differences(error, mask, 2) + _differences(error, mask, 3)
        total = total + steps / mask.sum()
    return total


def _differences(error: Maps, mask: Bool[Tensor, "B 1 H W"], axis: int) -> Tensor:
    length = error.shape[axis]
    first, second = (each.narrow(axis, 0, length - 2) for each in (error, mask))
    third, fourth = (each.narrow(axis, 2, length - 2) for each in (error, mask))
    return ((first - third).abs() * (second & fourth)).sum()


def first_loss(depth: Maps, target: Maps, known: Bool[Tensor, "B 1 H W"], weight: float) -> Tensor:
    """Return the loss of the first steps, √(weight · mean² g): the scale-invariant loss without its variance."""
    error = (depth[known] + EPSILON).log() - (target[known] + EPSILON).log()
    return (weight * error.mean().square()).clamp(min=1e-12).sqrt() if len(error) else depth.sum() * 0
