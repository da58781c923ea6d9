"""A mixture of gated MLPs, where each token takes a few (Shazeer et al. 2017; SigLino).

Axes: `B` batch, `N` tokens, `D` width.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.model.config import Experts, ViTConfig


class ExpertMlp(nn.Module):
    """Gated MLPs, the experts. A token takes the experts with the largest scores and adds their weighted outputs.

    A score is a sigmoid. `bias` is added to choose, but not to weigh: training balances the experts by it. A token that
    is computed alone has the same output, but for rounding, as in any batch (tiiuae/siglino, moe.py).
    """

    bias: Float[Tensor, " experts"]

    def __init__(self, config: ViTConfig, experts: Experts, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.chosen, self.activation = experts.chosen, activation
        count, dim, hidden = experts.count, config.dim, config.mlp_dim
        self.router = nn.Linear(dim, count, bias=False)
        self.register_buffer("bias", torch.zeros(count))
        self.w12 = nn.Parameter(nn.init.trunc_normal_(torch.empty(count, 2 * hidden, dim), std=0.02))
        self.w3 = nn.Parameter(nn.init.trunc_normal_(torch.empty(count, dim, hidden), std=0.02))

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        tokens = x.flatten(0, 1)
        shares = self.shares(tokens)
        mixed = torch.zeros_like(tokens)
        for expert, (w12, w3) in enumerate(zip(self.w12, self.w3, strict=True)):
            taken = self._taken(shares[:, expert])
            given, share = (part if taken is None else part[taken] for part in (tokens, shares[:, expert, None]))
            gate, value = F.linear(given, w12).chunk(2, dim=1)
            made = (F.linear(self.activation(gate) * value, w3) * share).type_as(x)
            mixed = mixed + made if taken is None else mixed.index_add(0, taken, made)
        return mixed.view_as(x)

    def _taken(self, share: Float[Tensor, " N"]) -> Int[Tensor, " T"] | None:
        """Return the tokens of an expert, or None for all of them.

        A graph holds no choice of tokens, so that all experts run for all. On the meta device, which has no scores, the
        experts share the tokens evenly.
        """
        if torch.compiler.is_compiling():
            return None
        if share.is_meta:
            return share.new_empty(len(share) * self.chosen // len(self.bias), dtype=torch.long)
        return share.nonzero()[:, 0]

    def shares(self, tokens: Float[Tensor, "N D"]) -> Float[Tensor, "N experts"]:
        """Return the score of each expert that a token takes, and 0 for the others."""
        scores = self.router(tokens).float().sigmoid()
        chosen = (scores + self.bias).topk(self.chosen, dim=1).indices
        return torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))
