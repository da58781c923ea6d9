"""Correct localisation, CorLoc: whether one box finds an object."""

import numpy as np
import torch
from jaxtyping import Float
from torchvision.ops import box_iou


def is_found(box: Float[np.ndarray, "4"], truth: Float[np.ndarray, "_ 4"], threshold: float = 0.5) -> bool:
    """Return whether a box (left, top, right, bottom) has an IoU of at least `threshold` with any true one."""
    overlap = box_iou(torch.from_numpy(box)[None], torch.from_numpy(truth))
    return bool((overlap >= threshold).any())
