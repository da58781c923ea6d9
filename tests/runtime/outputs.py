"""All that a backbone says of images, and how far two of them differ."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.backbones import images
from tests.helpers import relative_error
from vitbackbone import BackboneModule, Features, ViT
from vitbackbone.runtime import kernels

BF16 = torch.bfloat16
FP32 = torch.float32
packed_fp32 = pytest.mark.skipif(bool(kernels.trouble(FP32)), reason=kernels.trouble(FP32))
MIXED = [images(3, 40, 24), images(3, 16, 33, seed=1), images(3, 40, 24, seed=2)]


def parts(features: Features) -> list[Tensor]:
    return [x for x in (features.cls, features.registers, features.patches, features.pooled) if x is not None]


def outputs(backbone: BackboneModule, batch: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """All that a backbone says of images."""
    spec = backbone.spec
    with torch.inference_mode():
        found = parts(backbone(batch))
        for features in backbone.forward_layers(batch, range(spec.depth), norm=False):
            found += parts(features)
        if spec.num_prefix:
            for prefix in backbone.forward_prefix(batch, [0, -1], norm=False):
                found += [x for x in (prefix.cls, prefix.registers) if x is not None]
        if isinstance(batch, Tensor) and isinstance(backbone, ViT):
            found += [maps.weights for maps in backbone.attention(batch, [0, -1])]
    return found


def furthest(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return max(relative_error(x, y) for x, y in zip(a, b, strict=True) if x.numel())
