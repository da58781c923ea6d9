"""Linear layers in 8-bit integers. Weights have a scale for each output channel. Activations have one scale and one
zero point. A few images calibrate both.

A few channels of a pretrained ViT are tens of times as large as the rest. One scale for all channels would leave the
small ones only a few steps. So each channel is divided by a factor before rounding. Its column of the weights is
multiplied by the same factor (Xiao et al. 2022, "SmoothQuant").

Axes: `I O` width in and out, `M` tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int8, Shaped, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.model import Block, Mlp
from vitbackbone.runtime.kernels import POST_OPS, FastLinear, fuse_gelu, replace_linears

SMOOTHING = 0.5  # share of a channel's size that moves to the weights
FEWEST = 32  # least number of steps for a hidden channel of an MLP; with fewer, channels get factors


class Steps(NamedTuple):
    """The scale and zero point of 8-bit values: round(value / scale + zero)."""

    scale: float
    zero: int

    @classmethod
    def over(cls, low: float, high: float) -> "Steps":
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max(high - low, 1e-12) / 255
        return cls(scale, round(-low / scale))


class Seen(NamedTuple):
    """The observed range of each input channel of a linear layer."""

    low: Float[Tensor, " I"]
    high: Float[Tensor, " I"]

    @classmethod
    def of(cls, x: Float[Tensor, "*B I"]) -> "Seen":
        rows = x.flatten(0, -2)
        return cls(rows.amin(0), rows.amax(0))

    def joined(self, other: "Seen") -> "Seen":
        return Seen(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))

    @property
    def steps(self) -> Steps:
        """The steps of one scale for all channels."""
        return Steps.over(self.low.min().item(), self.high.max().item())

    @property
    def coarse(self) -> bool:
        """Whether one scale leaves too few steps for the median channel."""
        return (self.high - self.low).median().item() < FEWEST * self.steps.scale


class Int8Weights(NamedTuple):
    """8-bit weights of a linear layer, with their scales and the bias."""

    values: Int8[Tensor, "O I"]
    scales: Float[Tensor, " O"]
    bias: Float[Tensor, " O"] | None

    @classmethod
    def of(cls, weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None) -> "Int8Weights":
        """Round float weights to 8 bits."""
        scales = weight.abs().amax(1).clamp(min=1e-12) / 127
        return cls((weight / scales[:, None]).round().to(torch.int8), scales, bias)


class InputScaling(NamedTuple):
    """The factors and steps that turn the input of a linear layer into 8 bits."""

    factors: Float[Tensor, " I"]  # inputs are divided by them, and columns of the weights multiplied
    steps: Steps

    @classmethod
    def of(cls, seen: Seen, weight: Float[Tensor, "O I"], smooth: bool = True) -> "InputScaling":
        """Choose them from the observed ranges. Without `smooth` all factors are 1."""
        factors = torch.ones(weight.shape[1])
        if smooth:
            largest = torch.maximum(seen.high, -seen.low).clamp(min=1e-5)
            factors = largest**SMOOTHING / weight.abs().amax(0).clamp(min=1e-5) ** (1 - SMOOTHING)
        return cls(factors, Steps.over((seen.low / factors).min().item(), (seen.high / factors).max().item()))


Kernel = Callable[[UInt8[Tensor, "*B I"], Steps, str | None, Steps | None], Tensor]
MakeKernel = Callable[[Int8Weights], Kernel]


def onednn(weights: Int8Weights) -> Kernel:
    """Make oneDNN's 8-bit kernel, for CPUs that have instructions for it."""
    packed = torch.ops.onednn.qlinear_prepack(weights.values, None)
    zeros = torch.zeros(len(weights.scales), dtype=torch.int64)

    def run(x: Tensor, steps: Steps, gelu: str | None, out: Steps | None) -> Tensor:
        to = (1.0, 0, torch.float32) if out is None else (out.scale, out.zero, torch.uint8)
        post_op, algorithm = ("none", "") if gelu is None else ("gelu", POST_OPS[gelu])
        return torch.ops.onednn.qlinear_pointwise(
            x, *steps, packed, weights.scales, zeros, weights.bias, *to, post_op, [], algorithm
        )

    return run


def reference(weights: Int8Weights) -> Kernel:
    """Make a float32 kernel with the same results; `onednn` is tested against it."""

    def run(x: Tensor, steps: Steps, gelu: str | None, out: Steps | None) -> Tensor:
        y = F.linear(x.float() - steps.zero, weights.values.float()) * (steps.scale * weights.scales)
        y = y if weights.bias is None else y + weights.bias
        y = y if gelu is None else F.gelu(y, approximate=POST_OPS[gelu])
        return y if out is None else (y / out.scale + out.zero).round().clamp(0, 255).to(torch.uint8)

    return run


class Int8Linear(FastLinear):
    """A linear layer in 8 bits.

    `seen`: the ranges of the input. `smooth`: whether input channels have factors; an 8-bit input has none.
    `gelu`: the name in `POST_OPS` of a GELU for the output. `out`: the steps of an 8-bit output.
    """

    def __init__(
        self,
        linear: nn.Linear,
        gamma: Float[Tensor, " O"] | None,
        seen: Seen,
        make: MakeKernel,
        smooth: bool = True,
        gelu: str | None = None,
        out: Steps | None = None,
    ) -> None:
        super().__init__(linear, gamma)
        weight, bias = self.folded(torch.float32)
        factors, self.steps = InputScaling.of(seen, weight, smooth)
        self.inverse = 1 / (factors * self.steps.scale)
        self.kernel = make(Int8Weights.of(weight * factors, bias))
        self.gelu, self.out = gelu, out

    def multiply(self, x: Shaped[Tensor, "*B I"]) -> Shaped[Tensor, "*B O"]:
        if x.dtype != torch.uint8:
            x = rounded(x * self.inverse, self.steps.zero)
        return self.kernel(x, self.steps, self.gelu, self.out)


def rounded(x: Float[Tensor, "*B I"], zero: int) -> UInt8[Tensor, "*B I"]:
    """Round x + zero to 0..255, through signed integers because torch converts to them many times faster."""
    signed = (x + (zero - 128)).round_().clamp_(-128, 127).to(torch.int8)
    return signed.view(torch.uint8).bitwise_xor_(128)


def int8_trouble() -> str:
    """Return why oneDNN's 8-bit linear layers cannot be used here; empty if they agree with `reference`."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-127, 128, (80, 48), generator=generator).to(torch.int8)
    weights = Int8Weights(values, torch.rand(80, generator=generator) / 100, torch.randn(80, generator=generator))
    x = torch.randint(0, 256, (2, 37, 48), generator=generator).to(torch.uint8)
    steps, out = Steps(0.02, 131), Steps(0.05, 4)
    for gelu, to in ((None, None), ("gelu", out), ("gelu_tanh", out), ("gelu", None)):
        want = reference(weights)(x, steps, gelu, to).float()
        try:
            got = onednn(weights)(x, steps, gelu, to).float()
        except (AttributeError, RuntimeError, TypeError) as error:
            return f"oneDNN has no 8-bit linears here ({str(error).splitlines()[0][:120]})"
        off = (got - want).abs().max().item()
        if not off <= (1e-3 * want.abs().max().item() if to is None else 1.0):  # a step, where the last bit rounds
            return "oneDNN's 8-bit linears are wrong here, as on CPUs without instructions for them"
    return ""


# ---- in a ViT -----------------------------------------------------------------------------------------------------


@contextmanager
def watching(blocks: Sequence[Block]) -> Iterator[dict[nn.Module, Seen]]:
    """Observe the input ranges of the linear layers of the blocks within the `with` block."""
    seen: dict[nn.Module, Seen] = {}

    def look(linear: nn.Module, given: tuple[Tensor]) -> None:
        now = Seen.of(given[0])
        seen[linear] = seen[linear].joined(now) if linear in seen else now

    linears = [module for block in blocks for module in block.modules() if type(module) is nn.Linear]
    hooks = [linear.register_forward_pre_hook(look) for linear in linears]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def quantize(block: Block, seen: Mapping[nn.Module, Seen], mlp: str, make: MakeKernel) -> None:
    """Replace the linear layers of a block by 8-bit ones.

    `mlp` is the activation's name in `ViTConfig`. With a GELU, values between the two layers of the MLP stay in 8 bits,
    unless one scale for all channels is too coarse.
    """
    handed_on: list[nn.Module] = []
    if mlp in POST_OPS and isinstance(block.mlp, Mlp) and {block.mlp.fc1, block.mlp.fc2} <= seen.keys():
        hidden = seen[block.mlp.fc2]
        if not hidden.coarse:
            handed_on.append(block.mlp.fc2)
            first = block.mlp.fc1
            fuse_gelu(block.mlp, Int8Linear(first, None, seen[first], make, gelu=mlp, out=hidden.steps))
    replace_linears(
        block, lambda linear, gamma: Int8Linear(linear, gamma, seen[linear], make, smooth=linear not in handed_on)
    )
