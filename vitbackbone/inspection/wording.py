"""The words and columns that the printed pages about a model share."""

from collections.abc import Sequence

from vitbackbone.inspection.costs import Costs, windowed_blocks
from vitbackbone.model import ViTConfig


def count_patches(config: ViTConfig, grid: tuple[int, int]) -> int:
    return grid[0] * grid[1] * max(config.channel_groups, 1)


def own_config(config: object) -> ViTConfig:
    if not isinstance(config, ViTConfig):
        raise ValueError(
            f"costs are known for this package's own ViT only, and this is a {type(config).__name__}: Swin, hybrids "
            "and CNNs come from timm, and a fused backbone has the costs of its members"
        )
    return config


def experts_text(config: ViTConfig) -> str:
    """Say how many experts a token takes."""
    return f", {config.experts.chosen} of {config.experts.count} such experts for each token" if config.experts else ""


def prefix_tokens(config: ViTConfig) -> list[str]:
    registers = [plural(config.num_registers, "register")] if config.num_registers else []
    return [*["CLS"] * config.cls, *registers]


def windows_text(config: ViTConfig) -> str:
    windowed = windowed_blocks(config)
    text = f"{plural(windowed, 'block')} within windows of {config.window} x {config.window} patches"
    if windowed < config.depth:
        which = ", ".join(map(str, sorted(set(config.global_blocks))))
        text += f", {config.depth - windowed} over the whole image ({which})"
    return text


def whole_patches(size: tuple[int, int], patch: int, factor: float = 1) -> tuple[int, int]:
    """Return the size times a factor, rounded to whole patches."""
    height, width = (max(1, round(side * factor / patch)) * patch for side in size)
    return height, width


def patch_grid(config: ViTConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Return the grid (h, w) of an image of (H, W) pixels that is padded to whole patches."""
    if min(size) < 1:
        raise ValueError(f"size must be at least 1 pixel a side, got {size}")
    return -(-size[0] // config.patch_size), -(-size[1] // config.patch_size)


def sides_text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def digits_text(value: float) -> str:
    """Format a number with at least three digits: 0.0123, 1.23, 12.3, 123, 1,234."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def bytes_text(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{digits_text(count / size)} {unit}"
    return f"{digits_text(count / 2**10)} KiB"


def share_text(cost: Costs) -> str:
    return f"{100 * cost.attention / cost.flops:.1f}%"


def left_aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with left-aligned columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{n}}" for cell, n in zip(row, widths, strict=True)) for row in rows]


def right_aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with right-aligned columns under a header."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return ["  " + "  ".join(f"{c:>{n}}" for c, n in zip(row, widths, strict=True)) for row in [header, *rows]]
