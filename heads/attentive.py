"""Attentive pooling of patch tokens: the probes of V-JEPA and of AIM, as modules on tokens and as heads on `Features`.

Axes: `B` batch, `T` tokens, `D` width, `K` classes.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from heads.base import Needs
from heads.classification import Classifying
from heads.options import Count, Layers
from vitbackbone import BackboneSpec, Features

# ---- modules on tokens ----------------------------------------------------------------------------------------------


def _split(x: Float[Tensor, "B T D"], num_heads: int) -> Float[Tensor, "B heads T d"]:
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def _attend(
    q: Float[Tensor, "Q D"], k: Float[Tensor, "B T D"], v: Float[Tensor, "B T D"], valid: Tensor, num_heads: int
) -> Float[Tensor, "B Q D"]:
    """Multi-head attention of queries to the valid tokens."""
    q, k, v = (_split(x, num_heads) for x in (q.expand(k.shape[0], -1, -1), k, v))
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None])
    return x.transpose(1, 2).flatten(2)


def _check_heads(dim: int, num_heads: int) -> None:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(
            f"an attentive probe has {num_heads} heads on tokens of width {dim}; want a num_heads that divides {dim}"
        )


class VJepaClassifier(nn.Module):
    """V-JEPA's attentive probe (Bardes et al. 2024; facebookresearch/jepa, src/models/attentive_pooler.py).

    A learned query attends once to the normed tokens. The attention and an MLP are each added to it, and a linear layer
    classifies. Upstream also builds a projection after the attention, but its forward leaves it out.
    """

    def __init__(self, dim: int, num_classes: int, num_heads: int) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.empty(1, dim))
        self.norm1 = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        nn.init.trunc_normal_(self.query, std=0.02)
        for linear in (self.q, self.kv, self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        with torch.no_grad():
            self.fc2.weight /= math.sqrt(2)
        self.linear = nn.Linear(dim, num_classes)

    def forward(self, tokens: Float[Tensor, "B T D"], valid: Bool[Tensor, "B T"]) -> Float[Tensor, "B K"]:
        """Return logits. `valid` is True where a token shows the image; other tokens are ignored."""
        k, v = self.kv(self.norm1(tokens)).chunk(2, dim=2)
        x = (self.query + _attend(self.q(self.query), k, v, valid, self.num_heads))[:, 0]
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.linear(x)


class AimClassifier(nn.Module):
    """AIM's attention pooling (El-Nouby et al. 2024; apple/ml-aim, aim-v1/aim/v1/torch/layers.py).

    Learned queries attend once to batch-normed tokens, and a linear layer classifies their mean. The queries are not
    projected, and no layer has a bias.
    """

    def __init__(self, dim: int, num_classes: int, num_heads: int, num_queries: int = 1) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.randn(num_queries, dim) * 0.02)
        self.bn = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.linear = nn.Linear(dim, num_classes, bias=False)

    def forward(self, tokens: Float[Tensor, "B T D"], valid: Bool[Tensor, "B T"]) -> Float[Tensor, "B K"]:
        """Return logits. `valid` is as in `VJepaClassifier`; batch norm takes its statistics from valid tokens only."""
        x = self._normed(tokens, valid)
        x = _attend(self.query, self.k(x), self.v(x), valid, self.num_heads)
        return self.linear(x.mean(dim=1))

    def _normed(self, tokens: Float[Tensor, "B T D"], valid: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Apply batch norm, and set padding to zero."""
        if not self.training:  # no statistics are taken, so padding may pass, and no shape depends on values
            return self.bn(tokens.mT).mT.masked_fill(~valid[:, :, None], 0)
        normed = self.bn(tokens[valid])
        return torch.zeros_like(tokens, dtype=normed.dtype).masked_scatter(valid[:, :, None], normed)


FORMS: dict[str, type[VJepaClassifier] | type[AimClassifier]] = {"vjepa": VJepaClassifier, "aim": AimClassifier}


# ---- heads ----------------------------------------------------------------------------------------------------------


class VJepaProbe(Classifying):
    """V-JEPA's attentive probe on the patches of the last layer, with the final norm if there is one.

    It reads no CLS token, because V-JEPA's encoder has none. `num_heads` is the number of attention heads, by default
    the backbone's own, as in upstream's evaluation.
    """

    def __init__(self, spec: BackboneSpec, num_classes: Count, num_heads: Count | None = None) -> None:
        super().__init__(spec, Needs("last", norm=spec.has_norm, pooled=False))
        self.num_classes = num_classes
        self.classifier = VJepaClassifier(spec.dim, num_classes, spec.num_heads if num_heads is None else num_heads)

    def forward(self, features: Features) -> Float[Tensor, "B K"]:
        return self.classifier(features.tokens, features.valid.flatten(1))


class AimProbe(Classifying):
    """AIM's attentive probe on the mean of several layers' patches, before the final norm.

    `layers` are by default the last six, or all if there are fewer. They must have the same width and stride.
    `num_heads` is as for `VJepaProbe`. `num_queries` is the number of queries that are averaged.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        num_classes: Count,
        layers: Layers | None = None,
        num_heads: Count | None = None,
        num_queries: Count = 1,
    ) -> None:
        super().__init__(
            spec, Needs(tuple(range(-min(6, spec.depth), 0)) if layers is None else layers, norm=False, pooled=False)
        )
        kinds = {(spec.dims[layer], spec.strides[layer]) for layer in self.layers}
        if len(kinds) > 1:
            raise ValueError(
                f"an AIM probe averages layers {list(self.layers)} of {spec.name}, whose (width, stride) are "
                f"{sorted(kinds)}; want layers of one width and stride, such as layers=[-1]"
            )
        dim = spec.dims[self.layers[0]]
        self.num_classes = num_classes
        heads = spec.num_heads if num_heads is None else num_heads
        self.classifier = AimClassifier(dim, num_classes, heads, num_queries)

    def forward(self, *features: Features) -> Float[Tensor, "B K"]:
        tokens = torch.stack([each.tokens for each in features]).mean(dim=0)
        return self.classifier(tokens, features[0].valid.flatten(1))
