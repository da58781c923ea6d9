"""Scenes with exactly known depth: spheres and boxes on a tiled plane, in haze, before a sky without depth."""

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

FAR = 12.0  # larger depths count as unknown
Array: TypeAlias = np.ndarray


def draw(number: int, size: int) -> tuple[Array, Array]:
    """Draw a scene by its number: image (size, size, 3) in [0, 1], and depth along the optical axis, 0 if unknown."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:size, :size] * (1.2 / (size - 1)) - 0.6
    rays = np.stack([x, y + rng.uniform(-0.1, 0.3), np.ones_like(x)], axis=-1)  # one unit deep; y points down
    eye = rng.uniform(0.8, 1.6)  # height above the plane
    with np.errstate(divide="ignore"):
        depth = np.where(rays[..., 1] > 0, eye / rays[..., 1], np.inf)
    sky, light = rng.uniform(0.5, 1, 3), rng.normal((0.0, -2.0, -0.5))
    light /= np.linalg.norm(light)
    normal = np.broadcast_to([0.0, -1.0, 0.0], rays.shape).copy()
    tiles = (
        np.floor(np.where(np.isfinite(depth), depth, 0)[..., None] * rays[..., ::2] / rng.uniform(0.4, 1)).sum(-1) % 2
    )
    colour = rng.uniform(0.2, 0.9, 3) * np.where(tiles, 1, 0.6)[..., None]
    for _ in range(rng.integers(3, 8)):
        half, away = rng.uniform(0.2, 0.7), rng.uniform(1.5, 9)
        centre = np.array([rng.uniform(-0.6, 0.6) * away, eye - half, away])
        hit, facing = (sphere if rng.random() < 0.5 else box)(rays, centre, half)
        nearer = hit < depth
        point = (np.where(nearer, hit, 0)[..., None] * rays - centre) / half
        stripes = 0.75 + 0.25 * np.sign(np.sin(point @ rng.normal(size=3) * rng.uniform(2, 8)))
        colour[nearer] = (rng.uniform(0.1, 1, 3) * stripes[..., None])[nearer]
        normal[nearer], depth[nearer] = facing[nearer], hit[nearer]
    shaded = colour * (0.45 + 0.55 * (normal @ light).clip(0))[..., None]
    clear = np.exp(-depth / rng.uniform(8, 30))[..., None]  # of the haze
    image = (clear * shaded + (1 - clear) * sky + rng.normal(0, 0.01, shaded.shape)).clip(0, 1)
    return image, np.where(depth < FAR, depth, 0)


def sphere(rays: Array, centre: Array, radius: float) -> tuple[Array, Array]:
    """Return the depth at which each ray meets a sphere, infinite if it does not, and the normal there."""
    a, b, c = (rays**2).sum(-1), rays @ centre, centre @ centre - radius**2
    root = b**2 - a * c
    hit = np.where(root > 0, (b - np.sqrt(root.clip(0))) / a, np.inf)
    return hit, (np.where(np.isfinite(hit), hit, 0)[..., None] * rays - centre) / radius


def box(rays: Array, centre: Array, half: float) -> tuple[Array, Array]:
    """Return the same for a cube along the axes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        near, far = ((centre - np.sign(rays) * side) / rays for side in (half, -half))
    near, far = np.nan_to_num(near, nan=-np.inf), np.nan_to_num(far, nan=np.inf)
    hit = np.where(near.max(-1) < far.min(-1), near.max(-1), np.inf)
    return hit, -np.sign(rays) * (near == near.max(-1, keepdims=True))


def scenes(first: int, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Draw images (B, 3, size, size) from 0 to 1, and depth (B, 1, size, size)."""
    images, depths = zip(*(draw(first + i, size) for i in range(count)), strict=True)
    image, depth = (torch.from_numpy(np.stack(each)).float() for each in (images, depths))
    return image.permute(0, 3, 1, 2), depth[:, None]
