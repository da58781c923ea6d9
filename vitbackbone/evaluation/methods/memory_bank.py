"""Anomalies as patches unlike every patch of defect-free photos (Roth et al. 2022, PatchCore; Damm et al. 2025,
AnomalyDINO).

Axes: `N` patches of a photo, `R` patches of the bank, `D` width, `h w` patch grid, `H W` pixels.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import affine_transform, binary_dilation, binary_erosion, gaussian_filter
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional as F

BLOCK = 1 << 24  # similarities that are held at once
THREE = np.ones(3, dtype=bool)


def rotations(photo: UInt8[np.ndarray, "H W 3"], count: int) -> list[UInt8[np.ndarray, "H W 3"]]:
    """Return a photo turned by multiples of 360°/`count` around its centre. Corners show its mirror image.

    OpenCV, which the authors use, rounds coordinates to 1/32 of a pixel, so that its pixels differ by a few levels.
    """
    return [_turned(photo, 360.0 * i / count) for i in range(count)]


def _turned(photo: UInt8[np.ndarray, "H W 3"], degrees: float) -> UInt8[np.ndarray, "H W 3"]:
    if not degrees:
        return photo
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    back = np.array([[cos, sin], [-sin, cos]])  # (row, column) of the result to (row, column) of the photo
    centre = np.array(photo.shape[:2]) / 2
    turned = [
        affine_transform(photo[:, :, i].astype(np.float32), back, centre - back @ centre, order=1, mode="mirror")
        for i in range(3)
    ]
    return np.clip(np.rint(np.stack(turned, axis=2)), 0, 255).astype(np.uint8)


def distances(patches: Float[Tensor, "N D"], bank: Float[Tensor, "R D"]) -> Float[Tensor, " N"]:
    """Return 1 − cosine of each patch and its nearest patch of the bank. Both have length 1."""
    step = max(BLOCK // max(len(bank), 1), 1)
    return torch.cat([1 - (part @ bank.T).amax(dim=1) for part in patches.split(step)])


def image_score(distances: Float[np.ndarray, " N"], share: float) -> float:
    """Return the mean of the largest distances: a `share` of all, rounded down, but at least one."""
    count = int(len(distances) * share)
    return float(np.sort(distances)[::-1][: max(count, 1)].mean())


def score_map(distances: Float[np.ndarray, "h w"], size: tuple[int, int], sigma: float) -> Float[np.ndarray, "H W"]:
    """Return the score of each pixel: distances enlarged bilinearly, then blurred by a Gaussian of `sigma` pixels."""
    maps = torch.from_numpy(np.ascontiguousarray(distances))[None, None]
    enlarged = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    return gaussian_filter(enlarged[0, 0].numpy(), sigma=sigma)


def foreground(
    patches: Float[np.ndarray, "N D"], grid: tuple[int, int], threshold: float, border: float, least: float
) -> Bool[np.ndarray, " N"]:
    """Return the patches that show the object: those whose first principal component is above a threshold.

    (dammsi/AnomalyDINO, src/backbones.py) If at most a share `least` of the centre is chosen, the sign is turned. The
    centre leaves out a share `border` at each side. The mask is dilated and then closed by one patch in each direction
    of the row. This also joins the end of a row and the start of the next, because the authors' code has the patches in
    one column there.
    """
    component = PCA(n_components=1, svd_solver="randomized", random_state=0).fit_transform(patches)[:, 0]
    mask = component > threshold
    rows, columns = (slice(int(side * border), int(side * (1 - border))) for side in grid)
    centre = mask.reshape(grid)[rows, columns]
    if centre.sum() <= centre.size * least:
        mask = -component > threshold
    mask = binary_dilation(binary_dilation(mask, THREE), THREE)
    return binary_erosion(mask, THREE, border_value=1)
