"""Attention with a sink in each head, which takes a share of every query's attention and gives nothing (SigLino).

Axes: `B` batch, `N` tokens, `D` width, `d` width of a head.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.model.attention import SelfAttention
from vitbackbone.model.config import ViTConfig


class SinkAttention(SelfAttention):
    """Self-attention in which each head has one more key, with a learned logit and the value 0.

    The output equals plain attention times the sigmoid of log(sum(exp(logits))) - sink (tiiuae/siglino,
    attention.py).
    """

    def __init__(self, config: ViTConfig, grid: tuple[int, int]) -> None:
        super().__init__(config, grid)
        self.sinks = nn.Parameter(torch.zeros(config.num_heads))

    @property
    def is_plain(self) -> bool:
        """See `SelfAttention`."""
        return False

    def _terms(
        self,
        q: Float[Tensor, "B heads Q d"],
        k: Float[Tensor, "B heads N d"],
        v: Float[Tensor, "B heads N d"],
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Add one more token to attend to, whose key and value are 0 and whose logit is the sink."""
        sink = self.sinks.type_as(q)[None, :, None, None]
        if bias is None:
            logits = q.new_zeros(1, 1, 1, k.shape[2])
        else:
            logits = q.new_zeros(bias.shape).masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else bias
        batch, _, rows, _ = logits.shape
        heads = len(self.sinks)
        logits = torch.cat([logits.expand(-1, heads, -1, -1), sink.expand(batch, -1, rows, -1)], dim=3)
        return q, F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), logits

    def weights(
        self, x: Float[Tensor, "B N D"], grid: tuple[int, int], steps: int | None = None
    ) -> Float[Tensor, "B heads N N"]:
        """See `SelfAttention`. Each row sums to 1 minus the share of the sink."""
        scores = self._scores(x, grid, steps)
        sink = self.sinks.type_as(scores)[None, :, None, None].expand(*scores.shape[:3], 1)
        return torch.cat([scores, sink], dim=3).softmax(dim=3)[..., :-1]
