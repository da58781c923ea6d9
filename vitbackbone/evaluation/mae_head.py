"""MAE's linear probe: batch norm without scale, one linear layer, LARS (He et al. 2022, table 10).

Axes: `B` batch, `F` features, `K` classes.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

TRUST = 0.001  # trust coefficient of LARS (mae/util/lars.py)


class MaeHead:
    """The probe and its optimiser. The rate rises linearly for `warmup` of the steps and then falls by a cosine."""

    def __init__(
        self,
        width: int,
        classes: int,
        *,
        rate: float,
        momentum: float,
        steps: int,
        warmup: int,
        eps: float,
        device: str,
    ) -> None:
        self.norm = nn.BatchNorm1d(width, affine=False, eps=eps).to(device)
        self.linear = nn.Linear(width, classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            nn.init.trunc_normal_(self.linear.weight, std=0.01)
            nn.init.zeros_(self.linear.bias)
        self.linear = self.linear.to(device)
        self.rate, self.momentum, self.steps, self.warmup = rate, momentum, steps, warmup
        self.momenta = {name: torch.zeros_like(value) for name, value in self.linear.named_parameters()}

    def rate_at(self, number: int) -> float:
        """Return the learning rate of a step."""
        if number < self.warmup:
            return self.rate * number / self.warmup
        done = (number - self.warmup) / max(self.steps - self.warmup, 1)
        return self.rate * (1 + math.cos(math.pi * done)) / 2

    def step(self, vectors: Float[Tensor, "B F"], labels: Int[Tensor, " B"], number: int) -> None:
        """Take step `number`, counted from 0, on a batch. Nothing is learnt from one image, which has no variance."""
        if len(vectors) < 2:
            return
        self.norm.train()
        loss = F.cross_entropy(self.linear(self.norm(vectors)), labels)
        parameters = dict(self.linear.named_parameters())
        slopes = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for (name, value), slope in zip(parameters.items(), slopes, strict=True):
                if value.ndim > 1:  # LARS leaves biases as they are
                    size, steepness = value.norm(), slope.norm()
                    if size > 0 and steepness > 0:
                        slope = slope * (TRUST * size / steepness)
                self.momenta[name].mul_(self.momentum).add_(slope)
                value.sub_(self.rate_at(number) * self.momenta[name])

    def state(self) -> dict[str, Tensor]:
        """Return everything that training changes."""
        norm = {f"norm.{name}": value for name, value in self.norm.state_dict().items()}
        linear = {f"linear.{name}": value.detach() for name, value in self.linear.named_parameters()}
        return norm | linear | {f"momentum.{name}": value for name, value in self.momenta.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` returned."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def folded(self) -> tuple[Float[Tensor, "K F"], Float[Tensor, " K"]]:
        """Return the weight and bias of the linear layer that equals batch norm and layer together."""
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        weight = self.linear.weight / (self.norm.running_var + self.norm.eps).sqrt()
        return weight, self.linear.bias - weight @ self.norm.running_mean
