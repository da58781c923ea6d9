"""Fidelity: how close the features of a faster route are to plain float32.

Axes: `B` batch, `D` width.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.contract import Features, Fidelity


def compare(got: Features, want: Features) -> Fidelity:
    """Measure how close `got` is to `want`, features of the same images and layer."""
    with torch.inference_mode():
        cosines = _cosine(got.patches, want.patches) * want.valid
        patches = (cosines.sum(dim=(1, 2)) / want.valid.sum(dim=(1, 2))).min().item()
        cls = None if got.cls is None or want.cls is None else _cosine(got.cls, want.cls).min().item()
        cls_error = None if got.cls is None or want.cls is None else _error(got.cls, want.cls)
        return Fidelity(cls, patches, cls_error, _error(got.patches, want.patches))


def _cosine(a: Float[Tensor, "B D *map"], b: Float[Tensor, "B D *map"]) -> Float[Tensor, "B *map"]:
    """Return the cosine at each place: 1 for equal vectors, also for zeros, and 0 for values that are not finite."""
    cosine = F.cosine_similarity(a.double(), b.double(), dim=1)
    return cosine.masked_fill((a == b).all(dim=1), 1.0).nan_to_num(nan=0.0)


def _error(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()
