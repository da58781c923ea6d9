"""Printed pages: the costs of a model, its forward pass step by step, and the table of all models.

Axes: `B` batch, `N` tokens, `D` width, `h w` patch grid, `H W` pixels.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitbackbone.checkpoints import ADAPTED, ZOO, Entry
from vitbackbone.contract import Features
from vitbackbone.images import Resolution, sides
from vitbackbone.inspection.costs import Costs, costs, on_meta, parameters, windowed_blocks
from vitbackbone.model import GATED, ViTConfig
from vitbackbone.networks import FusedConfig

Row = tuple[str, str, str]  # a step of the trace: its name, its tensor, a note
MODELS = ["name", "pixels", "patch", "dim", "parameters", "licence", "source"]
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # input and output by module, without the batch


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
    return "\n".join(line.rstrip() for line in _columns([MODELS, *([str(v) for v in row.values()] for row in rows)]))


def _figures(config: object) -> tuple[int, int, int]:
    """Return patch size, width and parameters. A fused backbone has the smallest patch and the sums of its members."""
    if not isinstance(config, FusedConfig):
        return _own(config).patch_size, _own(config).dim, parameters(_own(config))
    patches, dims, counts = zip(*(_figures(ZOO[member].config) for member, _, _ in config.members), strict=True)
    return min(patches), sum(dims), sum(counts)


# ---- costs of a model -----------------------------------------------------------------------------------------------

COLUMNS = ["patches", "tokens", "parameters", "GFLOPs", "attention part", "activations", "attention map"]


def info(name: str, entry: Entry, resolution: Resolution | None = None) -> str:
    """Return a page on the tokens, parameters, compute and memory of a model.

    It also shows how they change with the resolution and the patch size. `resolution`: a side or (H, W) in pixels, by
    default the model's own. Raises `ValueError` if the entry is not this package's own ViT.
    """
    config, preprocess = _own(entry.config), entry.preprocess
    size = preprocess.image_size if resolution is None else sides(resolution)
    h, w = _grid(config, size)
    cost, p = costs(config, size), config.patch_size
    mlp = f"{'2 x ' * (config.mlp in GATED)}{config.mlp_dim}{_experts(config)}"
    facts = [("network", f"{config.depth} blocks, {config.dim} wide, {config.num_heads} heads, MLP {mlp}")]
    if config.window:
        facts.append(("windows", _windows(config)))
    patches = "a stem of 3x3 convolutions" if config.stem else "a linear projection of each patch"
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (preprocess.mean, preprocess.std))
    tokens = " + ".join([f"{h} x {w}{_groups(config)} = {_count_patches(config, (h, w))} patches", *_prefix(config)])
    compute = f"{_digits(cost.flops / 1e9)} GFLOPs an image, {_share(cost)} of it in the attention part"
    if cost.pooling:
        compute += f"; features.pooled adds {_digits(cost.pooling / 1e9)} GFLOPs"
    facts += [
        ("patches", f"{p} x {p} pixels, through {patches}"),
        ("input", f"{_by(size)} pixels, {preprocess.interpolation}, mean ({mean}), std ({std})"),
        ("tokens", tokens + f" = {_count_patches(config, (h, w)) + config.num_prefix}" * bool(config.num_prefix)),
        ("parameters", f"{_digits(parameters(config) / 1e6)} M"),
        ("compute", compute),
        ("activations", f"{_bytes(cost.activations)} an image at the peak, in float32"),
    ]
    wide = max(len(key) for key, _ in facts) + 2
    text = [name, *(f"  {key:<{wide}}{value}" for key, value in facts)]

    native = preprocess.image_size
    sizes = {native, size, *(_whole(native, p, factor) for factor in (0.5, 1.5, 2))}
    rows = [_costs(_by(s), config, s) for s in sorted(sizes, key=lambda s: (s[0] * s[1], s))]
    text += ["", "At other resolutions:", *_table(["pixels", *COLUMNS], rows)]
    if config.stem:
        text += ["", "Other patch sizes: none, because the strides of the convolutions fix it."]
    else:
        rows = []
        for patch in sorted({8, 16, 32, p}):
            if patch <= min(*size, *config.image_size):
                other = replace(config, patch_size=patch, image_size=_whole(config.image_size, patch))
                rows.append(_costs(f"{patch} x {patch}", other, size))
        text += ["", f"With other patch sizes, at {_by(size)} (another network, trained anew):"]
        text += _table(["patch", *COLUMNS], rows)
    return "\n".join([*text, "", _legend(config)])


def info_record(name: str, entry: Entry, resolution: Resolution | None = None) -> dict[str, Any]:
    """Return the numbers of `info` for other programs: FLOPs for one image, and bytes in float32."""
    config = _own(entry.config)
    size = entry.preprocess.image_size if resolution is None else sides(resolution)
    grid, cost = _grid(config, size), costs(config, size)
    return {
        "name": name,
        "config": asdict(config),
        "preprocess": asdict(entry.preprocess),
        "resolution": size,
        "grid": grid,
        "tokens": _count_patches(config, grid) + config.num_prefix,
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
    grid, cost = _grid(config, size), costs(config, size)
    return [
        label,
        _by(grid),
        f"{_count_patches(config, grid) + config.num_prefix}",
        f"{_digits(parameters(config) / 1e6)} M",
        _digits(cost.flops / 1e9),
        f"{_digits(cost.attention / 1e9)} ({_share(cost)})",
        _bytes(cost.activations),
        _bytes(cost.attention_map),
    ]


# ---- the forward pass step by step ----------------------------------------------------------------------------------


def _count_patches(config: ViTConfig, grid: tuple[int, int]) -> int:
    return grid[0] * grid[1] * max(config.channel_groups, 1)


def _groups(config: ViTConfig) -> str:
    return f" x {config.channel_groups} groups" if config.channel_groups else ""


POSITIONS = {
    "learned": "a learned vector",
    "sincos1d": "a fixed 1-D sine-cosine vector",
    "sincos2d": "a fixed 2-D sine-cosine vector",
    "computed2d": "a 2-D sine-cosine vector, computed for this grid,",
    "clips": "a 3-D sine-cosine vector, of time too,",
    "ground": "a sine-cosine vector of metres on the ground, computed for this grid,",
    "axes": "the sum of a learned vector for the row and one for the column",
}
NORMS = {"layer": "LayerNorm", "rms": "RMSNorm"}
FITS = {
    "resize": "resampled",
    "square": "resampled to a square and cropped,",
    "tile": "tiled",
    "buckets": "picked by the fraction of each side,",
}
ACTIVATIONS = {
    "gelu": "GELU between",
    "gelu_tanh": "GELU between, by its tanh approximation",
    "quick_gelu": "x · sigmoid(1.702 x) between",
    "relu": "ReLU between",
    "swiglu": "SiLU of one half times the other",
    "geglu": "GELU of one half times the other",
    "geglu_tanh": "GELU of one half, by its tanh approximation, times the other",
}
POOLS = {
    "cls": "CLS",
    "prefix": "the mean of CLS and the registers",
    "tokens": "some prefix tokens side by side",
    "mean": "the mean of the patches",
    "cls_mean": "CLS and the mean of the patches side by side",
    "map": "attention pooling",
    "query": "attention pooling",
    "neck": "the mean of the neck",
}


_TWO_HEADS = "the mean of two linear heads, on CLS and on the distillation token"
# By layout, if the classifier does not read the pooled features; see heads/classification.py
CLASSIFIERS = {
    "timm_distilled": _TWO_HEADS,
    "DeiTForImageClassificationWithTeacher": _TWO_HEADS,
    "dinov2_classifier": "a linear head on CLS and the mean of the patches side by side",
}


@torch.inference_mode()
def trace_rows(
    config: object, resolution: Resolution | None = None, num_classes: int | None = 1000, layout: str = ""
) -> list[Row]:
    """Return each step of the forward pass of one image: its name, its tensor, and a note.

    The shapes come from a forward on the meta device. `resolution`: a side or (H, W) in pixels, by default the
    configuration's own. `num_classes`: outputs of the classifier; None leaves it out. `layout`: the layout of the
    checkpoint, which tells what the classifier reads; by default it reads the pooled features.
    Raises `ValueError` on a size that the configuration refuses, and on other networks than this package's own ViT.
    """
    config = _own(config)
    model, shapes = on_meta(config), Shapes()
    for name, module in model.named_modules():
        module.register_forward_hook(partial(_remember, shapes, name))
    with torch.device("meta"):
        size = config.image_size if resolution is None else sides(resolution)
        features = model(torch.empty(1, config.channels, *size))
        rows = [*_entering(config, features, shapes), *_block(config, features.grid, shapes)]
        rows += _leaving(config, features, shapes)
    if num_classes is not None:
        rows.append(("logits", str(num_classes), CLASSIFIERS.get(layout, "a linear head on the pooled features")))
    return rows


def trace(
    config: object, resolution: Resolution | None = None, num_classes: int | None = 1000, layout: str = ""
) -> str:
    """Return the rows of `trace_rows` in aligned columns."""
    rows = trace_rows(config, resolution, num_classes, layout)
    return "\n".join(line.rstrip() for line in _columns(rows))


def _remember(shapes: Shapes, name: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
    given, made = (tuple(x.shape[1:]) if isinstance(x, Tensor) else () for x in (inputs[0], output))
    shapes[name] = given, made


def _entering(config: ViTConfig, features: Features, shapes: Shapes) -> list[Row]:
    """Return the steps from pixels to the tokens that enter the first block."""
    p, (h, w), (size,) = config.patch_size, features.grid, features.geometry.sizes
    c = config.channels
    rows = [("image", _by((*size, config.channels)), "")]
    if features.geometry.padded_size != size:
        padded = _by((*features.geometry.padded_size, config.channels))
        rows.append(("padded", padded, "zeros at the bottom and right, to whole patches"))
    if config.stem:
        for i, (_, stride) in enumerate(config.stem):
            channels, *pixels = shapes[f"patch_embed.convs.{3 * i + 2}"][1]
            rows.append((f"convolution {i + 1}", _by((*pixels, channels)), f"3 x 3, stride {stride}; BatchNorm, GELU"))
        rows.append(("patches", f"{h} x {w} = {h * w}", f"patches of {p} x {p} pixels, {channels} channels each"))
        how = "linear projection of each patch (a 1 x 1 convolution)"
    else:
        rows.append(("patches", f"{h} x {w} = {h * w}", f"patches of {p} x {p} x {c} = {c * p * p} values each"))
        how = f"linear projection E of each patch (a convolution with kernel and stride {p})"
    if config.tubelet:
        how += f", of {_count(config.tubelet, 'frame')}; an image is one frame"
    if config.channel_groups:
        how += f", for each of {config.channel_groups} groups of channels"
    tokens = _count_patches(config, (h, w))
    rows.append(("patch embedding", _by((tokens, config.dim)), how))
    if config.embed_norm:
        rows.append((NORMS[config.norm], _by(shapes["embed_norm"][1][-2:]), ""))
    if config.position != "none":
        note = f"{POSITIONS[config.position]} per position"
        if config.position not in ("axes", "computed2d", "ground") and (h, w) != config.table_grid:
            note += f", {FITS[config.resampling.fit]} from {_by(config.table_grid)} to {_by((h, w))}"
        rows.append(("+ positions", _by((tokens, config.dim)), note))
    if config.num_prefix:
        folded = config.cls and config.position != "none"
        note = "in front of the patches" + "; a position of CLS itself is folded into CLS" * folded
        rows.append((f"+ {', '.join(_prefix(config))}", _by(shapes["norm_pre"][0]), note))
    if config.pre_norm:
        rows.append((NORMS[config.norm], _by(shapes["norm_pre"][1]), "before the first block"))
    return rows


def _block(config: ViTConfig, grid: tuple[int, int], shapes: Shapes) -> list[Row]:
    """Return the steps of one block, which stands for all."""
    d, heads, n = config.dim, config.num_heads, shapes["blocks.0"][0][0]
    windowed, side = windowed_blocks(config), config.window
    windows: list[Row] = []
    maps = [_by((heads, n, n))] if windowed < config.depth else []
    if windowed:
        down, across = (-(-length // side) for length in grid)
        note = f"{_windows(config)}; {down} x {across} windows"
        if any(length % side for length in grid):
            note += ", the last ones " + {"pad": "filled up with zeros", "cut": "smaller"}[config.window_edge]
        windows.append(("  windows", _by((down * across, side**2, d)), note))
        maps.append(f"in windows {_by((down * across, heads, side**2, side**2))}")
    bias = ""
    if config.relative_position != "none":
        bias = " + bias of relative positions"
        if grid != config.grid and windowed < config.depth:
            bias += f" resampled from {_by(config.grid)} to {_by(grid)}"
    bias += ", beside a sink of each head" * config.sinks
    each, norm = config.head_width, NORMS[config.norm]
    turned = "q and k turned by rotary positions; " if config.rotary else ""
    turned = _normed(config) + turned
    weights = f"weights softmax(q kᵀ / √{each}{bias}), {', '.join(maps)}"
    inner = f"{norm}; " * config.attn_norm
    attention = f"{heads} heads of {each}; {turned}{weights}; {inner}linear {heads * each} -> {d}"
    gated = config.mlp in GATED
    hidden = config.mlp_dim if config.experts else shapes["blocks.0.mlp.w3" if gated else "blocks.0.mlp.fc2"][0][-1]
    mlp = f"{d} -> {'2 x ' * gated}{hidden} -> {d}, {ACTIVATIONS[config.mlp]}{f', then {norm}' * config.mlp_norm}"
    mlp += _experts(config)
    scale, legend = ("γ · ", ", γ learned per channel") if config.layer_scale else ("", "")
    before, after = config.branch_norm in ("before", "plain", "both"), config.branch_norm in ("after", "both")
    given = f"({norm}(x))" if before else "(x)"

    def branch(name: str) -> str:
        return f"x + {scale}" + (f"{norm}({name}{given})" if after else f"{name}{given}") + legend

    def normed(name: str) -> list[Row]:
        return [(f"  {norm}", _by(shapes[name][1]), "")] if before else []

    return [
        (_count(config.depth, "block"), _by(shapes["blocks.0"][1]), "each of them:"),
        *normed("blocks.0.norm1"),
        *windows,
        ("  self-attention", _by(shapes["blocks.0.attn"][1]), attention),
        ("  + residual", _by(shapes["blocks.0.norm2"][0]), branch("attention")),
        *normed("blocks.0.norm2"),
        ("  MLP", _by(shapes["blocks.0.mlp"][1]), mlp),
        ("  + residual", _by(shapes["blocks.0"][1]), branch("MLP")),
    ]


def _experts(config: ViTConfig) -> str:
    """Say how many experts a token takes."""
    return f", {config.experts.chosen} of {config.experts.count} such experts for each token" if config.experts else ""


def _normed(config: ViTConfig) -> str:
    """Say how queries, keys and values are normalised and shared."""
    whole = {"none": "", "head": f"{NORMS[config.norm]} on q and k of each head; "}
    whole["plain"] = "q and k of each head divided by their root mean square; "
    text = whole.get(config.qk_norm, f"{NORMS[config.norm]} on q and k; ")
    text += "v divided by its root mean square; " * config.v_norm
    return text + f"{config.kv_heads} heads of k and v; " * (config.kv_heads != config.num_heads)


def _leaving(config: ViTConfig, features: Features, shapes: Shapes) -> list[Row]:
    """Return the steps from the last block to the `Features`, and the steps of `pooled`."""
    rows = []
    if config.final_norm:
        rows.append((NORMS[config.norm], _by(shapes["norm"][1]), ""))
    if features.cls is not None:
        rows.append(("CLS", _by(features.cls.shape[1:]), "features.cls"))
    if config.num_registers:
        rows.append(("registers", _by(features.registers.shape[1:]), "features.registers"))
    rows.append(("patches", _by(features.patches.shape[1:]), "features.patches, the map: channels, rows, columns"))
    note = f"features.pooled, run only when asked for: {POOLS[config.pool]}"
    rows.append(("pooled", _by(features.pooled.shape[1:]), note))
    if config.pool in ("map", "query"):
        read = "all tokens" if config.pool_prefix else "the patches"
        note = f"one learned query attends to {read}, {config.pool_heads or config.num_heads} heads"
        note += f"; then x + MLP({NORMS[config.norm]}(x))" * (config.pool == "map")
        note += f"; then {NORMS[config.norm]}" * config.pool_norm
        rows.append(("  attention", _by(shapes["attn_pool"][1]), note))
    if config.pool == "neck":
        note = "convolutions 1 x 1 and 3 x 3, each with LayerNorm over the channels"
        rows.append(("  neck", _by(shapes["neck"][1]), note))
    if config.fc_norm:
        rows.append((f"  {NORMS[config.norm]}", _by(shapes["fc_norm"][1]), ""))
    if config.projection_dim:
        given, made = shapes["projection"]
        rows.append(("  projection", _by(made), f"linear {_by(given)} -> {_by(made)}"))
    return rows


# ---- shared by the pages --------------------------------------------------------------------------------------------


def _own(config: object) -> ViTConfig:
    if not isinstance(config, ViTConfig):
        raise ValueError(
            f"costs are known for this package's own ViT only, and this is a {type(config).__name__}: Swin, hybrids "
            "and CNNs come from timm, and a fused backbone has the costs of its members"
        )
    return config


def _prefix(config: ViTConfig) -> list[str]:
    registers = [_count(config.num_registers, "register")] if config.num_registers else []
    return [*["CLS"] * config.cls, *registers]


def _windows(config: ViTConfig) -> str:
    windowed = windowed_blocks(config)
    text = f"{_count(windowed, 'block')} within windows of {config.window} x {config.window} patches"
    if windowed < config.depth:
        which = ", ".join(map(str, sorted(set(config.global_blocks))))
        text += f", {config.depth - windowed} over the whole image ({which})"
    return text


def _whole(size: tuple[int, int], patch: int, factor: float = 1) -> tuple[int, int]:
    """Return the size times a factor, rounded to whole patches."""
    height, width = (max(1, round(side * factor / patch)) * patch for side in size)
    return height, width


def _grid(config: ViTConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Return the grid (h, w) of an image of (H, W) pixels that is padded to whole patches."""
    if min(size) < 1:
        raise ValueError(f"size must be at least 1 pixel a side, got {size}")
    return -(-size[0] // config.patch_size), -(-size[1] // config.patch_size)


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _digits(value: float) -> str:
    """Format a number with at least three digits: 0.0123, 1.23, 12.3, 123, 1,234."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{_digits(count / size)} {unit}"
    return f"{_digits(count / 2**10)} KiB"


def _share(cost: Costs) -> str:
    return f"{100 * cost.attention / cost.flops:.1f}%"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with left-aligned columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{n}}" for cell, n in zip(row, widths, strict=True)) for row in rows]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with right-aligned columns under a header."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return ["  " + "  ".join(f"{c:>{n}}" for c, n in zip(row, widths, strict=True)) for row in [header, *rows]]
