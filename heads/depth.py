"""Depth: DINOv2's linear head over bins, its loss, and the usual metrics.

Axes: `B` batch, `D` width, `K` bins, `h w` patch grid, `H W` pixels.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from einops import einsum
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from heads.base import DenseHead, Needs
from heads.options import Count, Layers
from heads.parallel import BatchNorm2d, refuse_past_ddp, total
from heads.segmentation import check_tensor
from vitbackbone import BackboneSpec, Features, align, pool_cls

Bound = Annotated[float, Field(gt=0, allow_inf_nan=False, description="finite numbers: want 0 < min < max")]

UPSAMPLE = 4
FLOOR = 0.1  # added to each bin's weight before the weights are normalised
MEAN_WEIGHT = 0.15  # weight of the squared mean error; the variance has weight 1
EPSILON = 0.001  # added before logarithms


class DepthHead(DenseHead):
    """A dense head whose output is a depth at each pixel, (B, 1, H, W)."""

    def loss(self, targets: Tensor, *features: Features) -> Tensor:
        """Return the `scale_invariant_loss` of the output, given depths (B, 1, H, W), 0 where unknown.

        If the images have different sizes, pad the targets with 0 at the right and bottom.

        Raises `ValueError` as `scale_invariant_loss` does, and `RuntimeError` under DDP outside its forward.
        """
        refuse_past_ddp(self)
        return scale_invariant_loss(self(*features), targets)


class LinearDepth(DepthHead):
    """Depth, (B, 1, H, W), as a weighted mean of evenly spaced bins. A linear map of a patch and CLS gives the weights.

    (Oquab et al. 2023, DINOv2, section 7.4; facebookresearch/dinov2, hub/depthers.py)

    `"last"` is DINOv2's `linear`, and `"even4"` its `linear4`. DINOv3's has `norm=True, cls=False, batch_norm=True,
    upsample=1`: the final norm, no CLS token beside each patch, batch norm, and no finer grid
    (facebookresearch/dinov3, eval/depth/models/linear_head.py).
    `min_depth`, `max_depth` bound the bins, in the unit of the targets. The defaults are DINOv2's for NYU, in metres.
    Raises `ValueError` unless 0 < min_depth < max_depth.
    """

    centres: Tensor

    def __init__(
        self,
        spec: BackboneSpec,
        layers: Layers = "last",
        bins: Count = 256,
        min_depth: Bound = 0.001,
        max_depth: Bound = 10.0,
        norm: bool = False,
        cls: bool = True,
        batch_norm: bool = False,
        upsample: Count = UPSAMPLE,
    ) -> None:
        if not 0 < min_depth < max_depth:
            raise ValueError(f"LinearDepth: min_depth={min_depth}, max_depth={max_depth}; want 0 < min < max")
        super().__init__(spec, Needs(layers, norm=norm, prefix=cls, pooled=False))
        self.cls, self.upsample = cls, upsample
        width = (1 + cls) * sum(spec.dims[layer] for layer in self.layers)
        self.bn = BatchNorm2d(width) if batch_norm else nn.Identity()
        self.linear = nn.Conv2d(width, bins, kernel_size=1)
        self.register_buffer("centres", torch.linspace(min_depth, max_depth, bins), persistent=False)

    def maps(self, *features: Features) -> Float[Tensor, "B 1 h w"]:
        """Return depth on a grid `upsample` times as fine as the first map.

        Raises `ValueError` on features without CLS, if the head reads it.
        """
        geometry = features[0].geometry
        parts = []
        for each in features:
            x = align(each, geometry)
            parts += [x, pool_cls(each)[:, :, None, None].expand_as(x)] if self.cls else [x]
        # Upstream resizes before the linear map. The result is the same, but it resizes many times the channels.
        logits = self.linear(self.bn(torch.cat(parts, dim=1)))
        logits = F.interpolate(logits, scale_factor=self.upsample, mode="bilinear", align_corners=False)
        weights = F.relu(logits) + FLOOR
        depth = einsum(weights, self.centres.to(weights), "B K h w, K -> B h w") / weights.sum(dim=1)
        return depth[:, None]


def _known(depth: Tensor, target: Tensor) -> Bool[Tensor, "B 1 H W"]:
    """Return a mask of the pixels whose target is known, because it is positive.

    Raises `ValueError` on a target of another shape, or that is not finite.
    """
    wanted = "want a positive finite depth where it is known, and 0 where it is not"
    check_tensor("depth", depth, "want the output of a depth head, (B, 1, H, W)")
    check_tensor("target", target, wanted)
    if target.shape != depth.shape:
        raise ValueError(f"target has shape {tuple(target.shape)}; want the output's shape, {tuple(depth.shape)}")
    if not target.is_floating_point():
        raise ValueError(f"target is {target.dtype}; {wanted}, in floating point")
    if not target.isfinite().all():
        raise ValueError(f"target holds NaN or infinity at {int((~target.isfinite()).sum())} pixels; {wanted}")
    return target > 0


def scale_invariant_loss(depth: Float[Tensor, "B 1 H W"], target: Tensor) -> Tensor:
    """Return √(Var g + 0.15 (mean g)²) for the log differences g over the pixels with a target above 0.

    (Eigen et al. 2014, with the weights of AdaBins; facebookresearch/dinov2, eval/depth/models/losses)

    It is 0 if no pixel has a target. In a training forward under DDP or FSDP it is over the pixels of all processes.
    Raises `ValueError` on a target of another shape, or with NaN or infinity.
    """
    known = _known(depth, target)
    error = (depth[known].float() + EPSILON).log() - (target[known].float() + EPSILON).log()
    count = total(error.new_tensor(float(len(error))))
    if not count:
        return depth.sum() * 0
    mean = total(error.sum()) / count
    variance = total((error - mean).square().sum()) / (count - 1).clamp(min=1)
    # The slope of the root is infinite at 0, where every pixel is right.
    return (variance + MEAN_WEIGHT * mean**2).clamp(min=1e-12).sqrt()


@dataclass(frozen=True)
class DepthMetrics:
    """Metrics of predicted depth over all pixels with a target."""

    abs_rel: float  # mean of |prediction - target| / target
    rmse: float  # in the unit of the targets
    delta1: float  # share of pixels where the ratio, or its inverse, is below 1.25

    def __str__(self) -> str:
        return f"abs-rel {self.abs_rel:.3f}, rmse {self.rmse:.3f}, delta1 {self.delta1:.1%}"


def depth_metrics(depth: Float[Tensor, "B 1 H W"], target: Tensor) -> DepthMetrics:
    """Measure predicted depth at all pixels with a target above 0 (Eigen et al. 2014, section 4.3).

    Raises `ValueError` on a target of another shape, with NaN or infinity, or nowhere above 0. A prediction must be
    above 0 at these pixels, too.
    """
    known = _known(depth, target)
    predicted, true = depth[known].double(), target[known].double()
    if not len(true):
        raise ValueError("no pixel of target is above 0; want a known depth for at least one pixel")
    if not (predicted > 0).all():
        raise ValueError(
            f"depth is not above 0 at {int((~(predicted > 0)).sum())} pixels with a target; want positive depths"
        )
    error = predicted - true
    ratio = torch.maximum(predicted / true, true / predicted)
    return DepthMetrics(
        abs_rel=(error.abs() / true).mean().item(),
        rmse=(error**2).mean().sqrt().item(),
        delta1=(ratio < 1.25).double().mean().item(),
    )
