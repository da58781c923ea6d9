"""Many linear classifiers on one forward: each input once, all learning rates as one matrix product.

Axes: `B` batch, `H` heads of one input, `F` features of the input, `K` classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class HeadInput:
    """The columns of the extracted vector that some heads read: CLS of the last `blocks` blocks, and the mean."""

    blocks: int
    mean: bool
    columns: tuple[tuple[int, int], ...]  # (start, stop) of each part

    def of(self, vectors: Float[Tensor, "B V"]) -> Float[Tensor, "B F"]:
        return torch.cat([vectors[:, start:stop] for start, stop in self.columns], dim=1)

    @property
    def width(self) -> int:
        return sum(stop - start for start, stop in self.columns)

    @property
    def name(self) -> str:
        return f"last{self.blocks}{'+mean' if self.mean else ''}"


def head_inputs(blocks: Sequence[int], means: Sequence[bool], widths: Sequence[int], dim: int) -> list[HeadInput]:
    """Return the inputs for each number of blocks, without and with the mean.

    The extracted vector has the CLS tokens of the last `max(blocks)` blocks, of `widths`, and then the mean, of `dim`.
    """
    ends = np.cumsum(widths).tolist()
    total = ends[-1]
    found = []
    for count in blocks:
        start = total - sum(list(widths)[-count:])
        for mean in means:
            found.append(HeadInput(count, mean, ((start, total), *([(total, total + dim)] if mean else []))))
    return found


class LinearHeads:
    """Linear classifiers, one for each pair of an input and a learning rate, trained together by SGD with momentum.

    Each is trained exactly as it would be alone (`torch.optim.SGD`, `CosineAnnealingLR` to 0). Weights start from
    N(0, 0.01), biases from 0. The heads of one input are one stacked matrix, so that they cost one product.
    """

    def __init__(
        self,
        inputs: Sequence[HeadInput],
        rates: Sequence[float],
        classes: int,
        *,
        steps: int,
        momentum: float,
        weight_decays: Sequence[float] = (0.0,),
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.inputs = list(inputs)
        self.options = [(rate, decay) for rate in rates for decay in weight_decays]
        self.steps, self.momentum, self.classes = steps, momentum, classes
        generator = torch.Generator().manual_seed(seed)
        count = len(self.options)
        self.weights = [
            (torch.randn(count, classes, each.width, generator=generator) * 0.01).to(device) for each in self.inputs
        ]
        self.biases = [torch.zeros(count, classes, device=device) for _ in self.inputs]
        self.momenta = [
            (torch.zeros_like(w), torch.zeros_like(b)) for w, b in zip(self.weights, self.biases, strict=True)
        ]
        self.rates = torch.tensor([rate for rate, _ in self.options], device=device).view(-1, 1, 1)
        self.decays = torch.tensor([decay for _, decay in self.options], device=device).view(-1, 1, 1)

    def logits(self, vectors: Float[Tensor, "B V"]) -> list[Float[Tensor, "B H K"]]:
        """Return the logits of the heads of each input."""
        found = []
        for each, weight, bias in zip(self.inputs, self.weights, self.biases, strict=True):
            flat = each.of(vectors) @ weight.flatten(0, 1).T
            found.append(flat.unflatten(1, weight.shape[:2]) + bias)
        return found

    @torch.no_grad()
    def step(self, vectors: Float[Tensor, "B V"], labels: Int[Tensor, " B"], number: int) -> None:
        """Take step `number`, counted from 0, on a batch."""
        rates = self.rates * ((1 + math.cos(math.pi * number / self.steps)) / 2)
        decaying, share = any(decay for _, decay in self.options), 1 / len(vectors)
        for each, weight, bias, momenta in zip(self.inputs, self.weights, self.biases, self.momenta, strict=True):
            x = each.of(vectors)
            slopes = (
                torch.addmm(bias.flatten(), x, weight.flatten(0, 1).T).unflatten(1, weight.shape[:2]).softmax(dim=2)
            )
            chosen = labels.view(-1, 1, 1).expand(-1, len(weight), 1)
            slopes.scatter_add_(2, chosen, slopes.new_full(chosen.shape, -1.0))
            # Each pass over the weights of all heads costs as much as many products, so there are two of them.
            momenta[0].flatten(0, 1).addmm_(slopes.flatten(1).T, x, beta=self.momentum, alpha=share)
            momenta[1].mul_(self.momentum).add_(slopes.sum(dim=0), alpha=share)
            for value, momentum in ((weight, momenta[0]), (bias.unsqueeze(2), momenta[1].unsqueeze(2))):
                if decaying:
                    momentum.addcmul_(self.decays, value)
                value.addcmul_(rates, momentum, value=-1)

    def state(self) -> dict[str, Tensor]:
        """Return everything that training changes."""
        named: dict[str, Tensor] = {}
        for i, (weight, bias, (of_weight, of_bias)) in enumerate(
            zip(self.weights, self.biases, self.momenta, strict=True)
        ):
            named |= {f"weight{i}": weight, f"bias{i}": bias, f"momentum{i}": of_weight, f"momentum_bias{i}": of_bias}
        return named

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` returned."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    def names(self) -> list[tuple[HeadInput, float, float]]:
        """Return (input, rate, weight decay) of each head, in the order of `predictions`."""
        return [(each, *option) for each in self.inputs for option in self.options]

    def accuracies(self, vectors: Float[Tensor, "B V"], labels: Int[Tensor, " B"]) -> Int[np.ndarray, " heads"]:
        """Count how many images each head classifies correctly, in the order of `names`."""
        right = [(part.argmax(dim=2) == labels[:, None]).sum(dim=0) for part in self.logits(vectors)]
        return torch.cat(right).cpu().numpy()

    def one(self, index: int) -> tuple[HeadInput, Float[Tensor, "K F"], Float[Tensor, " K"]]:
        """Return the input, weight and bias of one head."""
        at, option = divmod(index, len(self.options))
        return self.inputs[at], self.weights[at][option], self.biases[at][option]
