"""Weights that were trained at another image size than a configuration has."""

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from vitbackbone.checkpoints.rules import Change, ConversionError, Rules, State
from vitbackbone.model import ViTConfig, resample, resample_line, resample_relative
from vitbackbone.networks import TimmConfig

Size = int | tuple[int, int]  # size of images in pixels: one side, or (height, width)
TABLE, BIASES = "pos_embed.table", "blocks.{i}.attn.rel_pos.table"


def at_size(config: ViTConfig | TimmConfig, image_size: Size | None) -> ViTConfig | TimmConfig:
    """Return a configuration for another native size. Raises `ValueError` on a size that the network does not take."""
    if image_size is None:
        return config
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(size) < 1:
        raise ValueError(f"image_size={image_size}; want one side or (height, width) in pixels")
    if isinstance(config, ViTConfig):
        patch = config.patch_size
        if any(side % patch for side in size):
            raise ValueError(f"image_size={image_size}, which the patch size {patch} does not divide")
        return replace(config, image_size=size)
    arguments = {name: size if name == "img_size" else value for name, value in config.arguments}
    return replace(config, image_size=size, arguments=tuple(arguments.items()))


def trained_grid(config: ViTConfig, rules: Rules, tensors: State) -> tuple[int, int]:
    """Return the patch grid (h, w) that a checkpoint's tables of positions were trained for.

    A table does not say its shape: it is the configuration's grid if the numbers agree, otherwise a square. Raises
    `ConversionError` if it can be neither.
    """
    if config.position_grid is not None and config.relative_position == "decomposed":
        return _lines(config, rules, tensors)
    # the table is the same at every size, or holds several grids
    if config.position_grid is not None or config.position == "axes" or config.position_steps > 1:
        return config.grid
    h, w = config.grid
    count = _positions(rules, tensors, {h * w: h * w, (2 * h - 1) * (2 * w - 1) + 3: h * w})
    if count is None or count == h * w:
        return config.grid
    side = math.isqrt(count)
    if side**2 != count:
        raise ConversionError(
            f"the checkpoint does not fit:\n  {count} positions in the checkpoint, {h} x {w} in the model; want a "
            "square number, or image_size=(HEIGHT, WIDTH) of the training images"
        )
    return side, side


def _lines(config: ViTConfig, rules: Rules, tensors: State) -> tuple[int, int]:
    """Return the patch grid of the biases for rows and columns of a block that attends over the whole image."""
    everywhere = [i for i in range(config.depth) if not config.window or i in config.global_blocks]
    sides = []
    for axis, own in zip(("rows", "columns"), config.grid, strict=True):
        filling = [rule.sources for rule in rules if rule.targets == (f"blocks.{{i}}.attn.rel_pos.{axis}",)]
        keys = [source.replace("{i}", str(i)) for i in everywhere for (source,) in filling]
        sides.append(next(((len(tensors[key]) + 1) // 2 for key in keys if key in tensors), own))
    return sides[0], sides[1]


def _positions(rules: Rules, tensors: State, own: Mapping[int, int]) -> int | None:
    """Return the number of positions in a checkpoint, or None if it has none or their shapes do not fit together.

    `own`: the numbers of rows that fit the configuration, with its number of positions.
    """
    for rule in rules:
        sources = [source.replace("{i}", "0") for source in rule.sources]
        if not {TABLE, BIASES} & set(rule.targets) or not all(source in tensors for source in sources):
            continue
        given = tuple(tensors[source].float() for source in sources)
        try:
            made = rule.via.there(*given) if isinstance(rule.via, Change) else given
        except (RuntimeError, IndexError, ValueError):
            return None
        rows = len(made[[target in (TABLE, BIASES) for target in rule.targets].index(True)])
        square = rows if TABLE in rule.targets else ((math.isqrt(max(rows - 3, 0)) + 1) // 2) ** 2
        return own.get(rows, square)
    return None


def resample_tables(parameters: Mapping[str, Tensor], config: ViTConfig, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Return the parameters with tables of positions resized from `grid` to the grid of `config`, by its policy."""
    new, how, result = config.grid, config.resampling, dict(parameters)
    for name, table in parameters.items():
        if name == TABLE and config.position_grid is None:
            result[name] = resample(table, grid, new, how)
        elif name.endswith("attn.rel_pos.table"):
            result[name] = resample_relative(table, grid, new, how)
        elif name.endswith(("rel_pos.rows", "rel_pos.columns")):
            block, axis = int(name.split(".")[1]), name.endswith("columns")
            if not config.window or block in config.global_blocks:
                result[name] = resample_line(table, new[axis])
    return {name: tensor.contiguous() for name, tensor in result.items()}
