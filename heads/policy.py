"""Heads that turn a map into the vector that a robot policy reads.

Axes: `B` batch, `D` width, `K` keypoints, `C` channels, `h w` patch grid.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from heads.base import Needs
from heads.options import Count
from heads.resamplers import PoolingHead
from vitbackbone import BackboneSpec, Features, resize_maps


class SpatialSoftmax(PoolingHead):
    """Keypoints: the mean position (x, y) of each of K learned channels, (B, K, 2).

    (Finn et al. 2015, "Deep spatial autoencoders"; in the form of huggingface/lerobot, policies/diffusion,
    SpatialSoftmax)

    A 1x1 convolution gives K channels. The softmax of each over the map weights the positions, which run from -1 at the
    first patch to 1 at the last.
    """

    def __init__(self, spec: BackboneSpec, num_keypoints: Count = 32, layer: int = -1, norm: bool = True) -> None:
        super().__init__(spec, Needs((layer,), norm, pooled=False))
        self.keypoints = nn.Conv2d(spec.dims[self.layers[0]], num_keypoints, kernel_size=1)

    def pool(self, features: Features) -> Float[Tensor, "B K 2"]:
        logits = self.keypoints(features.patches)
        weights = logits.flatten(2).softmax(dim=-1).view_as(logits)
        rows, columns = (_from_minus_one(side).to(weights) for side in logits.shape[-2:])
        return torch.stack([weights.sum(dim=2) @ columns, weights.sum(dim=3) @ rows], dim=-1)


class KeypointEncoder(SpatialSoftmax):
    """The keypoints of `SpatialSoftmax` through a linear layer and ReLU, (B, 2K).

    LeRobot's Diffusion policy reads this vector of each camera.
    """

    def __init__(self, spec: BackboneSpec, num_keypoints: Count = 32, layer: int = -1, norm: bool = True) -> None:
        super().__init__(spec, num_keypoints, layer, norm)
        self.out = nn.Linear(2 * num_keypoints, 2 * num_keypoints)

    def pool(self, features: Features) -> Float[Tensor, "B C"]:
        return F.relu(self.out(super().pool(features).flatten(1)))


class PolicyNeck(PoolingHead):
    """Three convolutions that reduce a map to one vector, (B, C).

    (Shang et al. 2024, "Theia"; bdaiinstitute/theia, src/theia/utils/cortexbench/policy_heads.py)

    They reduce Theia's grid of 14 x 14 to 7, 3 and 1, with a norm over the whole map and ReLU after each. A map of
    another grid is first resized to 14 x 14 and loses its aspect, so the vector covers all of it. The norms scale and
    shift each channel, and Theia's norms each value.
    """

    GRID = 14

    def __init__(self, spec: BackboneSpec, width: Count = 256, layer: int = -1, norm: bool = True) -> None:
        super().__init__(spec, Needs((layer,), norm, pooled=False))
        dim = spec.dims[self.layers[0]]
        self.neck = nn.Sequential(
            nn.Conv2d(dim, width, kernel_size=4, stride=2, padding=1),
            nn.GroupNorm(1, width),
            nn.ReLU(),
            nn.Conv2d(width, width, kernel_size=3, stride=2),
            nn.GroupNorm(1, width),
            nn.ReLU(),
            nn.Conv2d(width, width, kernel_size=3),
            nn.GroupNorm(1, width),
            nn.ReLU(),
            nn.Flatten(),
        )

    def pool(self, features: Features) -> Float[Tensor, "B C"]:
        return self.neck(resize_maps(features.patches, (self.GRID, self.GRID)))


def _from_minus_one(count: int) -> Float[Tensor, " count"]:
    """Return evenly spaced numbers from -1 to 1. `torch.linspace` would fix the count in a traced graph."""
    places = torch.arange(count)
    return 2 * places / places[-1].clamp(min=1) - 1
