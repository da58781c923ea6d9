"""Linear layers in 8-bit integers: weights with a scale for each output channel, activations with one scale and zero
point, both fixed beforehand by what a few images show.

A few channels of a pretrained ViT are tens of times as large as the rest, and one scale for all would leave the rest a
handful of steps. So a channel is divided by a factor before it is rounded, and its column of the weights multiplied
(Xiao et al. 2022, "SmoothQuant").

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
from vitbackbone.runtime.linears import POST_OPS, FastLinear, fuse_gelu, replace_linears

SMOOTHING = 0.5  # the share of a channel's size that goes over to the weights
FEWEST = 32  # steps over the range of a hidden channel of an MLP; where one scale leaves it fewer, it has a factor


class Steps(NamedTuple):
    """Eight bits for a range of values: (value / scale + zero), rounded."""

    scale: float
    zero: int

    @classmethod
    def over(cls, low: float, high: float) -> "Steps":
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max(high - low, 1e-12) / 255
        return cls(scale, round(-low / scale))


class Seen(NamedTuple):
    """What went into a linear layer: the range of each channel."""

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
        """Of all channels alike."""
        return Steps.over(self.low.min().item(), self.high.max().item())

    @property
    def coarse(self) -> bool:
        """Whether these steps are too few for the channel in the middle."""
        return (self.high - self.low).median().item() < FEWEST * self.steps.scale


class Int8Weights(NamedTuple):
    """What an 8-bit kernel multiplies with."""

    values: Int8[Tensor, "O I"]
    scales: Float[Tensor, " O"]
    bias: Float[Tensor, " O"] | None

    @classmethod
    def of(cls, weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None) -> "Int8Weights":
        """Rounded."""
        scales = weight.abs().amax(1).clamp(min=1e-12) / 127
        return cls((weight / scales[:, None]).round().to(torch.int8), scales, bias)


class InputScaling(NamedTuple):
    """How what goes into a linear layer is rounded."""

    factors: Float[Tensor, " I"]  # that it is divided by before, and the columns of the weights multiplied with
    steps: Steps

    @classmethod
    def of(cls, seen: Seen, weight: Float[Tensor, "O I"], smooth: bool = True) -> "InputScaling":
        """`smooth`: whether there are factors other than 1."""
        factors = torch.ones(weight.shape[1])
        if smooth:
            largest = torch.maximum(seen.high, -seen.low).clamp(min=1e-5)
            factors = largest**SMOOTHING / weight.abs().amax(0).clamp(min=1e-5) ** (1 - SMOOTHING)
        return cls(factors, Steps.over((seen.low / factors).min().item(), (seen.high / factors).max().item()))


Kernel = Callable[[UInt8[Tensor, "*B I"], Steps, str | None, Steps | None], Tensor]
MakeKernel = Callable[[Int8Weights], Kernel]


def onednn(weights: Int8Weights) -> Kernel:
    """oneDNN's, for CPUs with instructions for it."""
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
    """The same in float32: what `onednn` is held to."""

    def run(x: Tensor, steps: Steps, gelu: str | None, out: Steps | None) -> Tensor:
        y = F.linear(x.float() - steps.zero, weights.values.float()) * (steps.scale * weights.scales)
        y = y if weights.bias is None else y + weights.bias
        y = y if gelu is None else F.gelu(y, approximate=POST_OPS[gelu])
        return y if out is None else (y / out.scale + out.zero).round().clamp(0, 255).to(torch.uint8)

    return run


class Int8Linear(FastLinear):
    """A linear layer in 8 bits.

    `seen`: what goes in. `smooth`: whether its channels have factors; they cannot where 8 bits come in.
    `gelu`, `out`: the GELU applied to the output, by its name in `POST_OPS`, and the steps that it is handed on in.
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
    """x + zero to the nearest of 0 to 255, by way of signed integers: torch converts to those many times as fast."""
    signed = (x + (zero - 128)).round_().clamp_(-128, 127).to(torch.int8)
    return signed.view(torch.uint8).bitwise_xor_(128)


def int8_trouble() -> str:
    """Why oneDNN's 8-bit linears are not to be used here; empty where they agree with `reference`."""
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
    """What goes into each linear layer of the blocks meanwhile."""
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
    """The linear layers of a block in 8 bits. Between those of an MLP with a GELU (`mlp`: its name in `ViTConfig`), the
    values stay in 8 bits, unless one scale for all of their channels would be too coarse."""
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
