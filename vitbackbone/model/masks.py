"""Masked patches: replaced by the mask token (BEiT, DINOv2), or dropped from the sequence (MAE, I-JEPA).

Axes: `B` batch, `N` patches, `K` kept patches, `R` registers, `D` width.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitbackbone.contract import Geometry, Kept, numbers
from vitbackbone.model.packing import Layout

if TYPE_CHECKING:
    from vitbackbone.model.vit import ViT


Mask = Bool[Tensor, "B h w"]  # True where a patch is replaced by the mask token
Keep = Int[Tensor, "B K"]  # indices of the patches that are not dropped


def check_mask(mask: Mask, batch: int, grid: tuple[int, int]) -> None:
    """Raise `ValueError` unless a mask has one value for each patch."""
    want = (batch, *grid)
    if numbers(*want, *mask.shape) and tuple(mask.shape) != want:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; want {want}, one value for each patch")


def check_keep(keep: Tensor, batch: int, patches: int) -> None:
    """Raise `ValueError` unless `keep` holds distinct indices of patches for each image. A graph does not check it."""
    wanted = f"want distinct indices from 0 to {patches - 1} as an integer tensor ({batch}, K)"
    if keep.ndim != 2 or keep.is_floating_point() or keep.dtype == torch.bool:
        raise ValueError(f"keep is {keep.dtype} of shape {tuple(keep.shape)}; {wanted}")
    if torch.compiler.is_compiling():
        return
    if len(keep) != batch or not keep.numel() or keep.min() < 0 or keep.max() >= patches:
        raise ValueError(f"keep has shape {tuple(keep.shape)} and values that are not patches; {wanted}")
    if (keep.sort(dim=1).values.diff(dim=1) == 0).any():
        raise ValueError(f"keep names a patch twice; {wanted}")


def run_kept(vit: "ViT", images: Float[Tensor, "B C H W"], geometry: Geometry, keep: Keep) -> Kept:
    """Return the features of the kept patches, which attend to each other and to the prefix tokens alone.

    The other patches leave the sequence, which saves their computation. If positions act inside attention, they stay
    and nothing attends to them.
    """
    config, prefix = vit.config, vit.config.num_prefix
    x, _ = vit.embed(images, geometry)
    index = keep.long()[..., None].expand(-1, -1, x.shape[2])
    inside = config.rotary is not None or config.relative_position != "none"
    if inside:
        layout, mask = Layout((geometry.grid,)), _visible(keep, prefix, x.shape[1])
    else:
        x = torch.cat([x[:, :prefix], x[:, prefix:].gather(1, index)], dim=1)
        layout, mask = Layout(((1, keep.shape[1]),)), None
    for block in vit.blocks:
        x = block(x, layout, mask)
    if inside:
        x = torch.cat([x[:, :prefix], x[:, prefix:].gather(1, index)], dim=1)
    x = x if vit.norm is None else vit.norm(x)
    first = int(config.cls)
    return Kept(x[:, 0] if first else None, x[:, first:prefix], x[:, prefix:], keep, geometry)


def _visible(keep: Keep, prefix: int, tokens: int) -> Bool[Tensor, "B 1 T T"]:
    """Return the attention mask under which every token attends to the prefix and the kept patches."""
    seen = torch.zeros(keep.shape[0], tokens, dtype=torch.bool, device=keep.device)
    seen = seen.scatter(1, keep.long() + prefix, True)
    seen[:, :prefix] = True
    return seen[:, None, None, :].expand(-1, 1, tokens, -1)
