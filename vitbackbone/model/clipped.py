"""Linear layers whose inputs and outputs are clamped (Gemma 4).

Axes: `I O` width in and out, `P` parts of a layer that stands for several, such as queries, keys and values.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.model.config import ViTConfig


class ClippedLinear(nn.Linear):
    """A linear layer that clamps its input and its output, with limits for each part of the output."""

    limits: Float[Tensor, "4 P"]  # least and most of the input, least and most of the output

    def __init__(self, inputs: int, widths: Sequence[int], bias: bool) -> None:
        super().__init__(inputs, sum(widths), bias=bias)
        self.widths = tuple(widths)
        wide = torch.tensor([[-torch.inf], [torch.inf]] * 2)[:, 0]
        self.register_buffer("limits", wide[:, None].repeat(1, len(self.widths)))

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        biases = [None] * len(self.widths) if self.bias is None else self.bias.split(self.widths)
        parts = zip(self.weight.split(self.widths), biases, self.limits.unbind(1), strict=True)
        return torch.cat(
            [
                F.linear(x.clamp(limits[0], limits[1]), weight, bias).clamp(limits[2], limits[3])
                for weight, bias, limits in parts
            ],
            dim=-1,
        )


def make_linear(config: ViTConfig, inputs: int, widths: Sequence[int], bias: bool) -> nn.Linear:
    """Build a linear layer, or a clipped one. `widths`: the widths of the parts of its output."""
    return ClippedLinear(inputs, widths, bias) if config.clipped else nn.Linear(inputs, sum(widths), bias=bias)
