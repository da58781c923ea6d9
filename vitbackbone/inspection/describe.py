"""Printed pages: the table of all models, and the costs of one."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from vitbackbone.checkpoints import ADAPTED, ZOO, Entry
from vitbackbone.images import Resolution, sides
from vitbackbone.inspection.costs import costs, parameters
from vitbackbone.inspection.wording import (
    bytes_text,
    count_patches,
    digits_text,
    experts_text,
    left_aligned,
    own_config,
    patch_grid,
    prefix_tokens,
    right_aligned,
    share_text,
    sides_text,
    whole_patches,
    windows_text,
)
from vitbackbone.model import GATED, ViTConfig
from vitbackbone.networks import FusedConfig

MODELS = ["name", "pixels", "patch", "dim", "parameters", "licence", "source"]


def models_rows(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return name, pixels, patch, dim, parameters, licence and source of each of these models of the zoo."""
    rows: list[tuple[Any, ...]] = []
    for name in names:
        if name in ADAPTED:
            side, stride, dim, millions, licence = ADAPTED[name]
            rows.append((name, (side, side), stride, dim, round(millions * 1e6), licence, f"timm/{name}"))
        else:
            entry = ZOO[name]
            rows.append((name, entry.preprocess.image_size, *_figures(entry.config), entry.licence, entry.source))
    return [dict(zip(MODELS, row, strict=True)) for row in rows]


def models_table(names: Sequence[str]) -> str:
    """Return these models of the zoo as an aligned table."""
    rows = [
        row
        | {
            "pixels": "x".join(map(str, sorted(set(row["pixels"])))),
            "parameters": f"{row['parameters'] / 1e6:.1f} M",
        }
        for row in models_rows(names)
    ]
    return "\n".join(
        line.rstrip() for line in left_aligned([MODELS, *([str(v) for v in row.values()] for row in rows)])
    )


def _figures(config: object) -> tuple[int, int, int]:
    """Return patch size, width and parameters. A fused backbone has the smallest patch and the sums of its members."""
    if not isinstance(config, FusedConfig):
        return own_config(config).patch_size, own_config(config).dim, parameters(own_config(config))
    patches, dims, counts = zip(*(_figures(ZOO[member].config) for member, _, _ in config.members), strict=True)
    return min(patches), sum(dims), sum(counts)


COLUMNS = ["patches", "tokens", "parameters", "GFLOPs", "attention part", "activations", "attention map"]


def info(name: str, entry: Entry, resolution: Resolution | None = None) -> str:
    """Return a page on the tokens, parameters, compute and memory of a model.

    It also shows how they change with the resolution and the patch size. `resolution`: a side or (H, W) in pixels, by
    default the model's own. Raises `ValueError` if the entry is not this package's own ViT.
    """
    config, preprocess = own_config(entry.config), entry.preprocess
    size = preprocess.image_size if resolution is None else sides(resolution)
    h, w = patch_grid(config, size)
    cost, p = costs(config, size), config.patch_size
    mlp = f"{'2 x ' * (config.mlp in GATED)}{config.mlp_dim}{experts_text(config)}"
    facts = [("network", f"{config.depth} blocks, {config.dim} wide, {config.num_heads} heads, MLP {mlp}")]
    if config.window:
        facts.append(("windows", windows_text(config)))
    patches = "a stem of 3x3 convolutions" if config.stem else "a linear projection of each patch"
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (preprocess.mean, preprocess.std))
    tokens = " + ".join(
        [f"{h} x {w}{_groups(config)} = {count_patches(config, (h, w))} patches", *prefix_tokens(config)]
    )
    compute = f"{digits_text(cost.flops / 1e9)} GFLOPs an image, {share_text(cost)} of it in the attention part"
    if cost.pooling:
        compute += f"; features.pooled adds {digits_text(cost.pooling / 1e9)} GFLOPs"
    facts += [
        ("patches", f"{p} x {p} pixels, through {patches}"),
        ("input", f"{sides_text(size)} pixels, {preprocess.interpolation}, mean ({mean}), std ({std})"),
        ("tokens", tokens + f" = {count_patches(config, (h, w)) + config.num_prefix}" * bool(config.num_prefix)),
        ("parameters", f"{digits_text(parameters(config) / 1e6)} M"),
        ("compute", compute),
        ("activations", f"{bytes_text(cost.activations)} an image at the peak, in float32"),
    ]
    wide = max(len(key) for key, _ in facts) + 2
    text = [name, *(f"  {key:<{wide}}{value}" for key, value in facts)]

    native = preprocess.image_size
    sizes = {native, size, *(whole_patches(native, p, factor) for factor in (0.5, 1.5, 2))}
    rows = [_costs(sides_text(s), config, s) for s in sorted(sizes, key=lambda s: (s[0] * s[1], s))]
    text += ["", "At other resolutions:", *right_aligned(["pixels", *COLUMNS], rows)]
    if config.stem:
        text += ["", "Other patch sizes: none, because the strides of the convolutions fix it."]
    else:
        rows = []
        for patch in sorted({8, 16, 32, p}):
            if patch <= min(*size, *config.image_size):
                other = replace(config, patch_size=patch, image_size=whole_patches(config.image_size, patch))
                rows.append(_costs(f"{patch} x {patch}", other, size))
        text += ["", f"With other patch sizes, at {sides_text(size)} (another network with weights of its own):"]
        text += right_aligned(["patch", *COLUMNS], rows)
    return "\n".join([*text, "", _legend(config)])


def info_record(name: str, entry: Entry, resolution: Resolution | None = None) -> dict[str, Any]:
    """Return the numbers of `info` for other programs: FLOPs for one image, and bytes in float32."""
    config = own_config(entry.config)
    size = entry.preprocess.image_size if resolution is None else sides(resolution)
    grid, cost = patch_grid(config, size), costs(config, size)
    return {
        "name": name,
        "config": asdict(config),
        "preprocess": asdict(entry.preprocess),
        "resolution": size,
        "grid": grid,
        "tokens": count_patches(config, grid) + config.num_prefix,
        "parameters": parameters(config),
        "flops": cost.flops,
        **asdict(cost),
    }


def _legend(config: ViTConfig) -> str:
    growth = "grow with N²" + ", within windows with N" * bool(config.window)
    block = "the largest" if config.window else "each"
    text = (
        "GFLOPs count backbone(images); a multiply-accumulate is 2 FLOPs. The attention part is q kᵀ and weights · v. "
        f"These {growth}; all other parts grow with N. Activations are the peak of all live tensors with the fused "
        f"attention kernel. That kernel never writes the attention map; the last column is the size of {block} block's "
        "map."
    )
    if config.relative_position != "none":
        text += (
            " The bias of relative positions is as large as the map of one image, and each block writes it. The "
            "activations contain it, and the attention part contains its computation."
        )
    return textwrap.fill(text, 112)


def _costs(label: str, config: ViTConfig, size: tuple[int, int]) -> list[str]:
    """Return a row with the columns `COLUMNS`."""
    grid, cost = patch_grid(config, size), costs(config, size)
    return [
        label,
        sides_text(grid),
        f"{count_patches(config, grid) + config.num_prefix}",
        f"{digits_text(parameters(config) / 1e6)} M",
        digits_text(cost.flops / 1e9),
        f"{digits_text(cost.attention / 1e9)} ({share_text(cost)})",
        bytes_text(cost.activations),
        bytes_text(cost.attention_map),
    ]


def _groups(config: ViTConfig) -> str:
    return f" x {config.channel_groups} groups" if config.channel_groups else ""
