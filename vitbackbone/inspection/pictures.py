"""Pictures of what a backbone sees: attention, rollout, similarity and PCA of its patches, over the photo.

Axes: `B` batch, `N` tokens, `D` width, `h w` patch grid, `H W` pixels.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.contract import Attention, Backbone, Features, device_of, evaluating
from vitbackbone.images import FILTERS, ImageSource, Preprocess, Resolution, View, load_image

MAX_TOKENS = 4096  # one map of 16 heads takes 1 GiB there
MAP_BYTES = 2**29  # most bytes of attention maps in one forward of `show`, which has at least one layer
MAX_GAIN = 12
INK = "#222222"
LEGEND = "least", "most attention; each map has its own scale"
PANEL = 480  # least pixels of the longer side of a panel


def pca_rgb(maps: Sequence[Float[Tensor, "D _ _"]]) -> list[Float[np.ndarray, "_ _ 3"]]:
    """Return the first three principal components of the patches as red, green and blue in [0, 1].

    `maps`: (D, h, w) of any grids; each gives one array (h, w, 3). They share one basis, so similar patches have
    similar colours in all images. The components are whitened and passed through the sigmoid. A patch that is two
    standard deviations from the mean is at 0.12 or 0.88, so differences among such patches stay visible. (DINOv3's
    notebook `pca.ipynb` uses sigmoid(2x), which saturates there.) Fewer than four patches, or equal patches, have fewer
    than three components; a missing one is 0.5 everywhere.

    The sign of a component is arbitrary, and LAPACK's choice differs from machine to machine. Here the skewness of
    each component is positive, so the few patches that stand out are bright. This rule reads only the projections: no
    rotation, permutation or negation of the channels changes the picture.

    Raises `ValueError` if there are no maps, their widths differ, or a value is not finite.
    """
    if not maps or any(m.ndim != 3 or m.numel() == 0 or len(m) != len(maps[0]) for m in maps):
        raise ValueError(f"want maps (D, h, w) of one width, at least one, got {[tuple(m.shape) for m in maps]}")
    x = torch.cat([rearrange(m, "D h w -> (h w) D") for m in maps]).double().cpu()
    if not x.isfinite().all():
        raise ValueError("the maps hold values that are not finite")
    noise = 1e-12 * x.square().sum(1).mean()  # variance caused by rounding to float32
    x = x - x.mean(0)
    variance, basis = torch.linalg.eigh(x.T @ x / len(x))  # ascending
    colours = torch.full((len(x), 3), 0.5, dtype=x.dtype)
    for i in range(min(3, x.shape[1])):
        if variance[-1 - i] > noise:
            projection = x @ basis[:, -1 - i] / variance[-1 - i].sqrt()
            skewness = projection.pow(3).mean()
            # If the patches are symmetric and neither side stands out, the top left one is dark.
            flip = projection[0] > 0 if skewness.abs() < 1e-6 else skewness < 0
            colours[:, i] = torch.sigmoid(-projection if flip else projection)
    parts = torch.split(colours.float(), [m.shape[1] * m.shape[2] for m in maps])
    return [rearrange(p, "(h w) c -> h w c", h=m.shape[1]).numpy() for p, m in zip(parts, maps, strict=True)]


def rollout(attentions: Sequence[Attention]) -> Float[Tensor, "B N N"]:
    """Return the attention rollout (Abnar & Zuidema 2020): the share of each input token in each output token.

    `attentions`: the attention of consecutive layers, first layer first. A layer gives (mean over heads + I) with rows
    normalised to 1; I is the residual connection. The rollout is their product, later layers on the left. CLS and
    registers are tokens like the others. It needs B * N² numbers beyond the maps.
    Raises `ValueError` if there are no layers.
    """
    if not attentions:
        raise ValueError("rollout got no layers; want the `Attention` of at least one")
    return reduce(lambda below, attention: _mixing(attention) @ below, attentions[1:], _mixing(attentions[0]))


def _mixing(attention: Attention) -> Float[Tensor, "B N N"]:
    """Return the weights with which a block mixes tokens, residual connection included; rows sum to 1."""
    mean = attention.weights.float().mean(dim=1)
    mixed = mean + torch.eye(mean.shape[-1], device=mean.device)
    return mixed / mixed.sum(dim=-1, keepdim=True)


def cls_map(
    weights: Float[Tensor, "*B N N"], num_prefix: int, grid: tuple[int, int], has_cls: bool = True
) -> Float[Tensor, "*B h w"]:
    """Return the attention of CLS to each patch as maps over the grid, from attention weights or a rollout.

    Without a CLS token (`has_cls=False`), the maps hold the mean attention of all patches, so every backbone has a
    picture. Rows of `weights` sum to 1; the maps sum to less if prefix tokens have a share.
    Raises `ValueError` if `has_cls` is true and `num_prefix` is 0.
    """
    if has_cls and not num_prefix:
        raise ValueError("num_prefix=0: there is no CLS token to look from; pass has_cls=False")
    return _over_patches(_looking(weights, num_prefix, has_cls), num_prefix, grid)


def _looking(weights: Float[Tensor, "*B N N"], num_prefix: int, has_cls: bool) -> Float[Tensor, "*B N"]:
    """Return the row of CLS, or the mean row of the patches."""
    return weights[..., 0, :] if has_cls else weights[..., num_prefix:, :].mean(dim=-2)


def _over_patches(row: Float[Tensor, "*B N"], num_prefix: int, grid: tuple[int, int]) -> Float[Tensor, "*B h w"]:
    return rearrange(row[..., num_prefix:], "... (h w) -> ... h w", h=grid[0], w=grid[1])


def similarity(features: Features, image: int, row: int, column: int) -> Float[Tensor, "h w"]:
    """Return the cosine similarity, in [-1, 1], of every patch of an image to its patch at (row, column).

    The map covers the grid of that image. Raises `IndexError` if the image has no such patch.
    """
    features.geometry.box(image, row, column)  # raises
    h, w = features.geometry.grids[image]
    patches = F.normalize(features.patches[image, :, :h, :w].float(), dim=0)
    return torch.einsum("d, d h w -> h w", patches[:, row, column], patches)


def overlay(
    photo: Image.Image, values: Float[Tensor, "h w"], patch: int, colours: str = "inferno", smooth: bool = True
) -> Image.Image:
    """Draw a heat map over the photo in grey, from the smallest of `values` (cold) to the largest (hot).

    The coldest places show only the photo. Its contrast is stretched, so that dark photos are visible.

    `patch`: side of a patch in pixels of the photo. The patches start at its top left corner. Patches at the right and
    bottom may reach into padding, which is cut away. `colours`: a matplotlib colormap. `smooth`: bicubic between patch
    centres; else each patch is a flat square. The picture has the size of the photo.
    Raises `ValueError` if the photo does not have that many patches.
    """
    try:
        from matplotlib import colormaps
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'vitbackbone[view]'") from error

    values = values.float().cpu()
    span = values.max() - values.min()
    heat = ((values - values.min()) / span if span > 0 else torch.zeros_like(values)).numpy()
    heat = _enlarge(heat[..., None], patch, photo, smooth)[..., 0]
    colour = colormaps[colours](heat)[..., :3]
    opacity = (0.9 * heat.clip(0, 1) ** 0.7)[..., None]
    return _picture(opacity * colour + (1 - opacity) * _stretched(photo)[..., None])


def _stretched(photo: Image.Image) -> Float[np.ndarray, "H W"]:
    """Return the photo in grey, from 0 to 0.9, with its contrast stretched between its 1st and 99th percentile.

    The gain is at most `MAX_GAIN`: beyond it, mostly noise would show.
    """
    grey = np.asarray(photo.convert("L"), dtype=np.float64) / 255
    low, high = np.percentile(grey, (1, 99))
    return (0.9 * (grey - low) / max(high - low, 1 / MAX_GAIN)).clip(0, 1)


def _enlarge(
    values: Float[np.ndarray, "h w c"], patch: int, photo: Image.Image, smooth: bool
) -> Float[np.ndarray, "H W c"]:
    """Enlarge each value to `patch` x `patch` pixels, and cut the result to the photo.

    Bicubic draws no crosses at peaks, as bilinear would. It can overshoot, so the result is clipped to [0, 1].
    """
    h, w, _ = values.shape
    if (h, w) != (-(-photo.height // patch), -(-photo.width // patch)):
        raise ValueError(f"{h} x {w} patches of {patch} px do not cover a photo of {photo.height} x {photo.width}")
    kind = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    channels = [Image.fromarray(np.ascontiguousarray(c, dtype=np.float32)) for c in np.moveaxis(values, 2, 0)]
    large = np.stack([np.asarray(c.resize((w * patch, h * patch), kind)) for c in channels], axis=2)
    return large[: photo.height, : photo.width].clip(0, 1)


def _picture(rgb: Float[np.ndarray, "H W 3"]) -> Image.Image:
    return Image.fromarray((rgb * 255).round().clip(0, 255).astype(np.uint8))


def show(
    backbone: Backbone,
    image: ImageSource,
    out: str | PathLike[str],
    resolution: Resolution | None = None,
    layer: int = -1,
    max_pixels: int | None = None,
) -> list[Path]:
    """Write PNG pictures of one image into the folder `out` and return their paths. A missing folder is made.

    photo.png      the photo as the network sees it, enlarged if that is small
    attention.png  square root of the attention of CLS to each patch: one panel for each head, on its own scale
    rollout.png    square root of the attention rollout of the blocks up to `layer`
    pca.png        PCA of the patches as RGB, alone and over the photo
    overview.png   photo, mean attention, rollout and PCA side by side

    The whole photo is used. Its shorter side is resized to `resolution`, by default the checkpoint's own, and its
    aspect ratio is kept. Both sides are rounded to whole patches, so no patch shows padding, and checkpoints that
    refuse other sizes work too. `layer`: 0-based, negative from the end; the final norm is applied if there is one.
    `max_pixels`: as for `Preprocess`. A backbone without CLS shows the mean attention of its patches.

    Memory: the attention maps of a layer take 4 * heads * N² bytes, and about three times that while they are
    computed. One forward returns as many layers as fit into 512 MiB, so a large N costs more forwards, not memory.
    Raises `ValueError` beyond 4096 tokens, and on a `FusedBackbone`: each of its members has its own pictures.
    """
    spec = backbone.spec
    if not isinstance(backbone.preprocess, Preprocess):
        raise ValueError(f"{spec.name} is several backbones, and each has its own attention; show one of them")
    rgb = load_image(image, max_pixels)
    size = _whole_patches(backbone.preprocess.view((rgb.height, rgb.width), resolution, keep_aspect=True), spec.stride)
    tokens = size[0] * size[1] // spec.stride**2 + spec.num_prefix
    if tokens > MAX_TOKENS:
        raise ValueError(
            f"{size[0]} x {size[1]} pixels give {tokens} tokens, and attention maps grow with their square; want at "
            f"most {MAX_TOKENS} tokens, so give a lower resolution"
        )
    squash = replace(backbone.preprocess, crop_mode="squash", crop_pct=1.0)
    images = squash(rgb, size)[None]
    images = images.to(device_of(backbone) or images.device)
    with evaluating(backbone):
        heads, rolled = _attention_maps(backbone, images, layer, tokens)
        features = backbone.forward_layers(images, [layer], norm=spec.norms([layer]))[0]

    patch = max(spec.stride, round(spec.stride * PANEL / max(size)))
    drawn = size[1] // spec.stride * patch, size[0] // spec.stride * patch  # (W, H)
    photo = rgb.resize(drawn, FILTERS[squash.interpolation])
    colours = _picture(_enlarge(pca_rgb([features.patches[0]])[0], patch, photo, smooth=True))
    # Attention falls off steeply. Its square root keeps weaker patches visible beside the strongest.
    per_head = [overlay(photo, head.sqrt(), patch) for head in heads]
    mean, rolled_picture = (overlay(photo, m.sqrt(), patch) for m in (heads.mean(0), rolled))
    who = "CLS attention" if spec.has_cls else "Mean attention"
    pictures = {
        "photo": photo,
        "attention": _panels(per_head, [f"head {i}" for i in range(len(heads))], legend=True),
        "rollout": rolled_picture,
        "pca": _panels(
            [colours, Image.blend(photo, colours, 0.6)], ["PCA 1, 2, 3 as red, green, blue", "over the photo"]
        ),
        "overview": _panels(
            [photo, mean, rolled_picture, colours],
            ["Photo", who, "Attention rollout", "PCA of the patches"],
            legend=True,
        ),
    }
    folder = Path(out)
    targets = [folder / f"{name}.png" for name in pictures]
    if isinstance(image, str | PathLike) and Path(image).resolve() in [target.resolve() for target in targets]:
        raise ValueError(f"the picture of that name would overwrite {image}; give another folder than {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    for target, picture in zip(targets, pictures.values(), strict=True):
        picture.save(target)
    return targets


def _whole_patches(view: View, stride: int) -> tuple[int, int]:
    """Return the size (H, W) of whole patches that is nearest to the size of the view."""
    height, width = (max(1, round(side / stride)) * stride for side in view.size)
    return height, width


def _attention_maps(
    backbone: Backbone, images: Float[Tensor, "1 3 H W"], layer: int, tokens: int
) -> tuple[Float[Tensor, "heads h w"], Float[Tensor, "h w"]]:
    """Return the attention of a layer for each head, and the rollout of the layers up to it.

    One row of the rollout needs no (N, N) product: it is carried from the last layer down, layer by layer.
    """
    spec = backbone.spec
    at_once = max(1, MAP_BYTES // (4 * spec.num_heads * tokens**2))
    top = spec.indices([layer])[0] + 1
    heads = row = torch.empty(0)
    for end in range(top, 0, -at_once):
        attentions = backbone.attention(images, range(max(0, end - at_once), end))
        for attention in reversed(attentions):
            if row.numel():
                row = torch.einsum("b n, b n m -> b m", row, _mixing(attention))
            else:
                heads = cls_map(attention.weights, spec.num_prefix, attention.grid, spec.has_cls)
                row = _looking(_mixing(attention), spec.num_prefix, spec.has_cls)
    return heads[0], _over_patches(row, spec.num_prefix, (heads.shape[-2], heads.shape[-1]))[0]


def _panels(pictures: Sequence[Image.Image], titles: Sequence[str], legend: bool = False) -> Image.Image:
    """Arrange pictures of one size in a grid, each under its title: at most four in a row, rows filled evenly.

    `legend`: explain the colours of `overlay` below them.
    """
    rows = -(-len(pictures) // 4)
    columns = -(-len(pictures) // rows)
    width, height = pictures[0].size
    text = max(12, width // 16)
    gap, header = max(4, width // 40), round(1.6 * text)
    bottom = rows * (height + header + gap)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, bottom + header * legend), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(text)
    for i, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        x, y = gap + i % columns * (width + gap), i // columns * (height + header + gap)
        draw.text((x + width // 2, y + header // 2), title, fill=INK, font=font, anchor="mm")
        sheet.paste(picture, (x, y + header))
    if legend:
        (least, most), side = LEGEND, text // 2
        small = ImageFont.load_default(max(11, round(0.7 * text)))
        if draw.textlength(least + most, small) + 16 * side + 4 * gap > sheet.width:
            small = ImageFont.load_default(round(0.7 * text))
        bar = overlay(Image.new("RGB", (16 * side, side)), torch.linspace(0, 1, 16)[None], side)
        left = max(gap, (sheet.width - bar.width - round(draw.textlength(least + most, small))) // 2)
        left += round(draw.textlength(least, small))
        middle = bottom + header // 2
        draw.text((left - gap, middle), least, fill=INK, font=small, anchor="rm")
        sheet.paste(bar, (left, middle - bar.height // 2))
        draw.text((left + bar.width + gap, middle), most, fill=INK, font=small, anchor="lm")
    return sheet
