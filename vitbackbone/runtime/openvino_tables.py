"""The inputs of a graph besides images: all that depends on the patch grid.

torch makes them, because each checkpoint has its own way to resample positions.
"""

from typing import cast

import torch
from torch import Tensor

from vitbackbone.model import (
    Block,
    DecomposedTables,
    Grid,
    Layout,
    RelativeTable,
    SelfAttention,
    ViT,
    WindowAttention,
    rotary_row_with_cls,
    rotary_table,
)
from vitbackbone.runtime.openvino_projections import channels


def tables(vit: ViT, deepest: int, grid: Grid) -> dict[str, Tensor]:
    """Return the inputs of the graph besides images, by name, for a patch grid and the blocks up to `deepest`."""
    config = vit.config
    found: dict[str, Tensor] = {}
    if vit.pos_embed is not None:
        found["positions"] = vit.pos_embed(grid)
    if config.rotary:
        found |= _rotary(vit, deepest, grid)
    if config.relative_position == "decomposed" or config.window:
        found["grid"] = torch.tensor(grid)
    if config.window:
        found["windows"] = torch.tensor([-(-side // config.window) for side in grid])
        found["padding"] = torch.tensor([0, *(-side % config.window for side in grid), 0])
    attentions = _attentions(vit, deepest)
    for attn in attentions if config.window_edge == "cut" else ():
        if isinstance(attn, WindowAttention):
            filled = attn.filled(grid, torch.device("cpu"))
            found["filled"] = torch.zeros(filled.shape).masked_fill(~filled, -torch.inf)
    for i, attn in enumerate(attentions) if config.relative_position != "none" else ():
        if isinstance(attn.rel_pos, RelativeTable):
            found[f"bias.{i}"] = attn.rel_pos.bias(grid).contiguous()
        elif isinstance(attn.rel_pos, DecomposedTables) and not isinstance(attn, WindowAttention):
            found[f"rows.{i}"], found[f"columns.{i}"] = attn.rel_pos.pairs(grid)
    return found


def _rotary(vit: ViT, deepest: int, grid: Grid) -> dict[str, Tensor]:
    """Return the rotary table of each row of tokens: one for all blocks, or one a block if CLS turns by learned
    angles."""
    config = vit.config
    assert config.rotary is not None
    if config.rotary.cls_angles:
        rows = {
            f"rotary.{i}": rotary_row_with_cls(config.rotary, attn.cls_angles, Layout((grid,)))
            for i, attn in enumerate(_attentions(vit, deepest))
            if attn.cls_angles is not None
        }
        return {name: row[..., channels(config)] for name, row in rows.items()}
    table = rotary_table(config.rotary, config.head_width, grid, torch.device("cpu"))
    still = torch.tensor([1.0, 0.0])[:, None, None].expand(-1, config.num_prefix, table.shape[-1])
    return {"rotary": torch.cat([still, table[..., channels(config)]], dim=1)}


def _attentions(vit: ViT, deepest: int) -> list[SelfAttention]:
    return [cast(Block, block).attn for block in vit.blocks[: deepest + 1]]
