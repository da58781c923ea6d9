"""The loss of a set of masks: each target is matched to one query, and the other queries should predict "no object".

Axes: `B` batch, `Q` queries, `T` targets of an image, `P` places, `K` classes, `h w` grid of the masks, `H W` pixels.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from heads.parallel import total
from heads.segmentation import check_labels, check_tensor, ignored

CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT, NO_OBJECT_WEIGHT = 2.0, 5.0, 5.0, 0.1


@dataclass(frozen=True)
class Masks:
    """Masks and their classes, as logits. The last class is "no object"."""

    masks: Float[Tensor, "B Q h w"]
    classes: Float[Tensor, "B Q C"]  # K classes and "no object"


def set_loss(predicted: Masks, labels: Tensor, ignore_index: int | None = None) -> Tensor:
    """Return Mask2Former's loss (Cheng et al. 2022).

    It is 2 x the cross-entropy of the classes, plus 5 x the binary cross-entropy and 5 x the dice loss of the matched
    masks. "No object" has weight 0.1. Masks are matched by the same sum (Kuhn 1955, the Hungarian method).

    `labels` are integers (B, H, W) that cover the same pixels as the masks. The target mask of a class is its share of
    the pixels at each of the h x w places. Upstream samples places at random; here all of them are used. Ignored
    pixels are left out, and a batch that is ignored as a whole gives 0. In a training forward under DDP or FSDP the
    means are over the images of all processes.

    `ignore_index` is the label that means no class, by default 255. Raises `ValueError` on labels that are not integers
    (B, H, W), and on a label that is not a class. With 256 classes or more, an `ignore_index` must be given.
    """
    from scipy.optimize import linear_sum_assignment

    logits, classes = predicted.masks.float(), predicted.classes.float()
    none = classes.shape[2] - 1
    ignore_index = ignored(none, ignore_index)
    check_tensor("labels", labels, "want integers (B, H, W)")
    check_labels(labels, (len(logits), *labels.shape[-2:]), none, ignore_index)
    wanted = torch.full(classes.shape[:2], none, device=labels.device)
    mask_loss = dice_loss = logits.sum() * 0
    matched = 0
    for i, label in enumerate(labels):
        present, targets, seen = _targets(label, ignore_index, (logits.shape[2], logits.shape[3]))
        if not len(present):
            wanted[i] = -100  # torch's cross-entropy leaves it out, because nothing is known about this image
            continue
        binary, dice = _pairs(logits[i][:, seen], targets[:, seen])
        likely = classes[i].softmax(dim=1)[:, present]
        cost = MASK_WEIGHT * binary + DICE_WEIGHT * dice - CLASS_WEIGHT * likely
        rows, columns = (torch.from_numpy(index) for index in linear_sum_assignment(cost.detach().cpu().numpy()))
        wanted[i, rows] = present[columns]
        mask_loss = mask_loss + binary[rows, columns].sum()
        dice_loss = dice_loss + dice[rows, columns].sum()
        matched += len(present)
    weights = torch.ones(none + 1, device=classes.device)
    weights[none] = NO_OBJECT_WEIGHT
    class_loss = F.cross_entropy(classes.mT, wanted, weights, reduction="sum")
    weight = weights[wanted[wanted >= 0]].sum()
    sums = total(torch.stack([class_loss, MASK_WEIGHT * mask_loss + DICE_WEIGHT * dice_loss]))
    counts = total(torch.stack([weight, weight.new_tensor(float(matched))]))
    class_mean, mask_mean = sums / torch.where(counts > 0, counts, 1)
    return CLASS_WEIGHT * class_mean + mask_mean


def _targets(label: Tensor, ignore_index: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return an image's classes (T,), their shares of each place (T, h, w), and a mask (h, w) of places not ignored."""
    present = label[label != ignore_index].unique().long()
    each = F.adaptive_avg_pool2d((label == present[:, None, None]).float(), grid)
    shown = F.adaptive_avg_pool2d((label != ignore_index).float()[None], grid)[0]
    return present, each / shown.clamp(min=1e-6), shown > 0


def _pairs(logits: Float[Tensor, "Q P"], targets: Float[Tensor, "T P"]) -> tuple[Tensor, Tensor]:
    """Return the binary cross-entropy (Q, T) and the dice loss (Q, T) of each query with each target."""
    binary = (F.softplus(logits).sum(dim=1, keepdim=True) - logits @ targets.T) / logits.shape[1]
    shares = logits.sigmoid()
    areas = rearrange(shares.sum(dim=1), "Q -> Q 1") + targets.sum(dim=1)
    return binary, 1 - (2 * shares @ targets.T + 1) / (areas + 1)
