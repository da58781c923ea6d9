"""The forward pass of a model, step by step, with the shape of each tensor."""

from functools import partial

import torch
from torch import Tensor, nn

from vitbackbone.contract import Features
from vitbackbone.images import Resolution, sides
from vitbackbone.inspection.costs import on_meta, windowed_blocks
from vitbackbone.inspection.wording import (
    count_patches,
    experts_text,
    left_aligned,
    own_config,
    plural,
    prefix_tokens,
    sides_text,
    windows_text,
)
from vitbackbone.model import GATED, ViTConfig

Row = tuple[str, str, str]  # a step of the trace: its name, its tensor, a note
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # input and output by module, without the batch


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
    config = own_config(config)
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
    return "\n".join(line.rstrip() for line in left_aligned(rows))


def _remember(shapes: Shapes, name: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
    given, made = (tuple(x.shape[1:]) if isinstance(x, Tensor) else () for x in (inputs[0], output))
    shapes[name] = given, made


def _entering(config: ViTConfig, features: Features, shapes: Shapes) -> list[Row]:
    """Return the steps from pixels to the tokens that enter the first block."""
    p, (h, w), (size,) = config.patch_size, features.grid, features.geometry.sizes
    c = config.channels
    rows = [("image", sides_text((*size, config.channels)), "")]
    if features.geometry.padded_size != size:
        padded = sides_text((*features.geometry.padded_size, config.channels))
        rows.append(("padded", padded, "zeros at the bottom and right, to whole patches"))
    if config.stem:
        for i, (_, stride) in enumerate(config.stem):
            channels, *pixels = shapes[f"patch_embed.convs.{3 * i + 2}"][1]
            rows.append(
                (f"convolution {i + 1}", sides_text((*pixels, channels)), f"3 x 3, stride {stride}; BatchNorm, GELU")
            )
        rows.append(("patches", f"{h} x {w} = {h * w}", f"patches of {p} x {p} pixels, {channels} channels each"))
        how = "linear projection of each patch (a 1 x 1 convolution)"
    else:
        rows.append(("patches", f"{h} x {w} = {h * w}", f"patches of {p} x {p} x {c} = {c * p * p} values each"))
        how = f"linear projection E of each patch (a convolution with kernel and stride {p})"
    if config.tubelet:
        how += f", of {plural(config.tubelet, 'frame')}; an image is one frame"
    if config.channel_groups:
        how += f", for each of {config.channel_groups} groups of channels"
    tokens = count_patches(config, (h, w))
    rows.append(("patch embedding", sides_text((tokens, config.dim)), how))
    if config.embed_norm:
        rows.append((NORMS[config.norm], sides_text(shapes["embed_norm"][1][-2:]), ""))
    if config.position != "none":
        note = f"{POSITIONS[config.position]} per position"
        if config.position not in ("axes", "computed2d", "ground") and (h, w) != config.table_grid:
            note += f", {FITS[config.resampling.fit]} from {sides_text(config.table_grid)} to {sides_text((h, w))}"
        rows.append(("+ positions", sides_text((tokens, config.dim)), note))
    if config.num_prefix:
        folded = config.cls and config.position != "none"
        note = "in front of the patches" + "; a position of CLS itself is folded into CLS" * folded
        rows.append((f"+ {', '.join(prefix_tokens(config))}", sides_text(shapes["norm_pre"][0]), note))
    if config.pre_norm:
        rows.append((NORMS[config.norm], sides_text(shapes["norm_pre"][1]), "before the first block"))
    return rows


def _block(config: ViTConfig, grid: tuple[int, int], shapes: Shapes) -> list[Row]:
    """Return the steps of one block, which stands for all."""
    d, heads, n = config.dim, config.num_heads, shapes["blocks.0"][0][0]
    windowed, side = windowed_blocks(config), config.window
    windows: list[Row] = []
    maps = [sides_text((heads, n, n))] if windowed < config.depth else []
    if windowed:
        down, across = (-(-length // side) for length in grid)
        note = f"{windows_text(config)}; {down} x {across} windows"
        if any(length % side for length in grid):
            note += ", the last ones " + {"pad": "filled up with zeros", "cut": "smaller"}[config.window_edge]
        windows.append(("  windows", sides_text((down * across, side**2, d)), note))
        maps.append(f"in windows {sides_text((down * across, heads, side**2, side**2))}")
    bias = ""
    if config.relative_position != "none":
        bias = " + bias of relative positions"
        if grid != config.grid and windowed < config.depth:
            bias += f" resampled from {sides_text(config.grid)} to {sides_text(grid)}"
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
    mlp += experts_text(config)
    scale, legend = ("γ · ", ", γ learned per channel") if config.layer_scale else ("", "")
    before, after = config.branch_norm in ("before", "plain", "both"), config.branch_norm in ("after", "both")
    given = f"({norm}(x))" if before else "(x)"

    def branch(name: str) -> str:
        return f"x + {scale}" + (f"{norm}({name}{given})" if after else f"{name}{given}") + legend

    def normed(name: str) -> list[Row]:
        return [(f"  {norm}", sides_text(shapes[name][1]), "")] if before else []

    return [
        (plural(config.depth, "block"), sides_text(shapes["blocks.0"][1]), "each of them:"),
        *normed("blocks.0.norm1"),
        *windows,
        ("  self-attention", sides_text(shapes["blocks.0.attn"][1]), attention),
        ("  + residual", sides_text(shapes["blocks.0.norm2"][0]), branch("attention")),
        *normed("blocks.0.norm2"),
        ("  MLP", sides_text(shapes["blocks.0.mlp"][1]), mlp),
        ("  + residual", sides_text(shapes["blocks.0"][1]), branch("MLP")),
    ]


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
        rows.append((NORMS[config.norm], sides_text(shapes["norm"][1]), ""))
    if features.cls is not None:
        rows.append(("CLS", sides_text(features.cls.shape[1:]), "features.cls"))
    if config.num_registers:
        rows.append(("registers", sides_text(features.registers.shape[1:]), "features.registers"))
    rows.append(
        ("patches", sides_text(features.patches.shape[1:]), "features.patches, the map: channels, rows, columns")
    )
    note = f"features.pooled, run only when asked for: {POOLS[config.pool]}"
    rows.append(("pooled", sides_text(features.pooled.shape[1:]), note))
    if config.pool in ("map", "query"):
        read = "all tokens" if config.pool_prefix else "the patches"
        note = f"one learned query attends to {read}, {config.pool_heads or config.num_heads} heads"
        note += f"; then x + MLP({NORMS[config.norm]}(x))" * (config.pool == "map")
        note += f"; then {NORMS[config.norm]}" * config.pool_norm
        rows.append(("  attention", sides_text(shapes["attn_pool"][1]), note))
    if config.pool == "neck":
        note = "convolutions 1 x 1 and 3 x 3, each with LayerNorm over the channels"
        rows.append(("  neck", sides_text(shapes["neck"][1]), note))
    if config.fc_norm:
        rows.append((f"  {NORMS[config.norm]}", sides_text(shapes["fc_norm"][1]), ""))
    if config.projection_dim:
        given, made = shapes["projection"]
        rows.append(("  projection", sides_text(made), f"linear {sides_text(given)} -> {sides_text(made)}"))
    return rows
