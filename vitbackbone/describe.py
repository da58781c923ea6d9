"""What a Vision Transformer costs, and what happens inside it, from its configuration alone.

No weights are needed: models are built on torch's `meta` device, which knows shapes and holds no numbers.

Axes: `B` batch, `N` tokens, `D` width, `h w` patch grid, `H W` pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from vitbackbone.config import ViTConfig
from vitbackbone.preprocess import Preprocess, Resolution
from vitbackbone.vit import ViT
from vitbackbone.zoo import ZOO

FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one image. A multiply-accumulate counts as 2, as torch's `FlopCounterMode` does;
    papers often count it as 1 and say "FLOPs" too. Norms, softmax, GELU and additions are left out."""

    embed: int  # image to patch tokens
    linear: int  # query, key, value, output projection and MLP of all blocks: grows with N
    attention: int  # q kᵀ and weights · v of all blocks: grows with N²

    @property
    def total(self) -> int:
        return self.embed + self.linear + self.attention


@dataclass(frozen=True)
class Memory:
    """Bytes that the activations take in float32, weights not counted."""

    peak: int  # the most that lives at once in an inference forward, with the fused attention kernel
    attention_map: int  # one block's (heads, N, N) weights, which that kernel never writes out


@cache
def parameters(config: ViTConfig) -> int:
    """Parameters of the `ViT`, fixed position tables included, classification head not."""
    return sum(p.numel() for p in _on_meta(config).parameters())


def flops(config: ViTConfig, size: tuple[int, int]) -> Flops:
    """The cost of one image of (H, W) pixels, padded to whole patches."""
    h, w = _grid(config, size)
    n, d, m = h * w + config.num_prefix, config.dim, config.mlp_dim
    embed = 0
    width, scale = 3, config.patch_size  # pixels to go until the patch grid, a side
    for out, stride in config.stem:
        scale //= stride
        embed += 2 * (h * scale) * (w * scale) * out * width * 9
        width = out
    embed += 2 * h * w * d * width * scale**2  # one p x p kernel, or 1 x 1 after a stem
    mlp = (3 if config.mlp == "swiglu" else 2) * d * m
    linear = config.depth * 2 * n * (4 * d * d + mlp)
    return Flops(embed, linear, config.depth * 4 * n * n * d)


def activation_memory(config: ViTConfig, size: tuple[int, int], batch: int = 1) -> Memory:
    """The peak of an inference forward of `batch` images of (H, W) pixels, and what attention maps would add.

    Counted are the tensors alive at once, the images included, in the three places where a peak can be:

    - embedding: the padded copy of the images, and what a step (convolution, norm, GELU, positions) reads and writes;
    - attention: the stream, its normed copy, q k v, the heads' output and its projection: 7 * N * D;
    - MLP: the stream before and after attention, its normed copy, and the hidden layer before and after GELU:
      3 * N * D + 2 * N * M. With SwiGLU both branches, SiLU of the gate and the product: 3 * N * D + 4 * N * M.

    Workspace inside torch's kernels, a position table resampled to a new grid, and what an allocator rounds up or
    keeps come on top.
    """
    h, w = _grid(config, size)
    n, d, m = h * w + config.num_prefix, config.dim, config.mlp_dim
    images = 3 * size[0] * size[1]
    padded = 3 * h * w * config.patch_size**2
    steps, scale = [0], config.patch_size  # what each step of the embedding writes; the first reads the padded images
    for out, stride in config.stem:
        scale //= stride
        steps += [h * w * scale**2 * out] * 2  # the convolution; its norm and, as large, GELU
    steps += [h * w * d, h * w * d, n * d]  # projection, positions, prefix tokens
    embed = padded + max(a + b for a, b in pairwise(steps))
    attention = 7 * n * d
    mlp = 3 * n * d + (4 if config.mlp == "swiglu" else 2) * n * m
    return Memory(FLOAT32 * batch * (images + max(embed, attention, mlp)), FLOAT32 * batch * config.num_heads * n * n)


def info(name: str, config: ViTConfig, preprocess: Preprocess, resolution: Resolution | None = None) -> str:
    """A page on a model at its own input size, or at `resolution` (a side or (H, W), in pixels): tokens, parameters,
    compute and memory, and how they change with the resolution and the patch size."""
    size = preprocess.image_size if resolution is None else _size(resolution)
    h, w = _grid(config, size)
    cost, memory, p = flops(config, size), activation_memory(config, size), config.patch_size
    patches = "a stem of 3x3 convolutions" if config.stem else "a linear projection of each patch"
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (preprocess.mean, preprocess.std))
    tokens = " + ".join([f"{h} x {w} = {h * w} patches", *_prefix(config)])
    facts = [
        ("network", f"{config.depth} blocks, {config.dim} wide, {config.num_heads} heads, MLP {config.mlp_dim}"),
        ("patches", f"{p} x {p} pixels, through {patches}"),
        ("input", f"{_by(size)} pixels, {preprocess.interpolation}, mean ({mean}), std ({std})"),
        ("tokens", f"{tokens} = {h * w + config.num_prefix}"),
        ("parameters", f"{_digits(parameters(config) / 1e6)} M"),
        (
            "compute",
            f"{_digits(cost.total / 1e9)} GFLOPs an image, {_share(cost)} of it in the O(N²) part of attention",
        ),
        ("activations", f"{_bytes(memory.peak)} an image at the peak, in float32"),
    ]
    wide = max(len(key) for key, _ in facts) + 2
    text = [name, *(f"  {key:<{wide}}{value}" for key, value in facts)]

    native = preprocess.image_size
    sizes = {native, size, *(_whole(native, p, factor) for factor in (0.5, 1.5, 2))}
    rows = [_costs(_by(s), config, s) for s in sorted(sizes, key=lambda s: (s[0] * s[1], s))]
    text += ["", "At other resolutions:", *_table(["pixels", *COSTS], rows)]
    if config.stem:
        text += ["", "Other patch sizes: none; the strides of the convolutions make it."]
    else:
        rows = []
        for patch in sorted({8, 16, 32, p}):
            if patch <= min(*size, *config.image_size):
                other = replace(config, patch_size=patch, image_size=_whole(config.image_size, patch))
                rows.append(_costs(f"{patch} x {patch}", other, size))
        text += ["", f"With other patch sizes, at {_by(size)} (another network, trained anew):"]
        text += _table(["patch", *COSTS], rows)
    text += [
        "",
        "A multiply-accumulate is 2 FLOPs. Activations are what lives at once with the fused attention kernel, which",
        "never writes out the attention map; the last column is what each block's map would take.",
    ]
    return "\n".join(text)


def models_table(names: Sequence[str]) -> str:
    """The zoo's entries of these names as an aligned table."""
    header = ["name", "pixels", "patch", "dim", "parameters", "licence", "source"]
    rows = [header]
    for name in names:
        entry = ZOO[name]
        size = "x".join(map(str, sorted(set(entry.preprocess.image_size))))
        millions = f"{parameters(entry.config) / 1e6:.1f} M"
        rows.append(
            [name, size, str(entry.config.patch_size), str(entry.config.dim), millions, entry.licence, entry.source]
        )
    return "\n".join(line.rstrip() for line in _columns(rows))


COSTS = ["patches", "tokens", "parameters", "GFLOPs", "O(N²) part", "activations", "attention map"]


def _costs(label: str, config: ViTConfig, size: tuple[int, int]) -> list[str]:
    """A row under `COSTS`."""
    grid, cost, memory = _grid(config, size), flops(config, size), activation_memory(config, size)
    return [
        label,
        _by(grid),
        f"{grid[0] * grid[1] + config.num_prefix}",
        f"{_digits(parameters(config) / 1e6)} M",
        _digits(cost.total / 1e9),
        f"{_digits(cost.attention / 1e9)} ({_share(cost)})",
        _bytes(memory.peak),
        _bytes(memory.attention_map),
    ]


@torch.inference_mode()
def trace(
    config: ViTConfig, resolution: Resolution | None = None, num_classes: int | None = 1000, layout: str = ""
) -> str:
    """What happens to one image on its way through the network: each step, its tensor, and a word on it.

    The shapes are those of a forward on the meta device. `resolution`: a side or (H, W) in pixels, by default the
    configuration's own. `num_classes`: of the classifier; None leaves it out. `layout`: the checkpoint's, which tells
    what the classifier reads, by default the pooled features.
    Raises `ValueError` on a size that the configuration refuses.
    """
    model = _on_meta(config)
    seen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}  # of each module: shapes in and out, without batch

    def remember(name: str) -> None:
        def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            if isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                seen[name] = tuple(inputs[0].shape[1:]), tuple(output.shape[1:])

        model.get_submodule(name).register_forward_hook(hook)

    for name, _ in model.named_modules():
        remember(name)
    height, width = config.image_size if resolution is None else _size(resolution)
    images = torch.empty(1, 3, height, width, device="meta")
    features = model(images)
    _, heads, n, _ = model.attention(images, [0])[0].weights.shape
    p, d, (h, w) = config.patch_size, config.dim, features.grid

    rows = [("image", _by((height, width, 3)), "")]
    given = seen["patch_embed"][0]
    if given != (3, height, width):
        rows.append(("padded", _by((*given[1:], given[0])), "zeros at the bottom and right, to whole patches"))
    if config.stem:
        for i, (_, stride) in enumerate(config.stem):
            channels, *pixels = seen[f"patch_embed.convs.{3 * i + 2}"][1]
            rows.append((f"convolution {i + 1}", _by((*pixels, channels)), f"3 x 3, stride {stride}; BatchNorm, GELU"))
        rows.append(("patches", f"{h} x {w} = {h * w}", f"patches of {p} x {p} pixels, {channels} channels each"))
        how = "linear projection of each patch (a 1 x 1 convolution)"
    else:
        rows.append(("patches", f"{h} x {w} = {h * w}", f"patches of {p} x {p} x 3 = {3 * p * p} values each"))
        how = f"linear projection E of each patch (a convolution with kernel and stride {p})"
    channels, *pixels = seen["patch_embed"][1]
    rows.append(("patch embedding", _by((pixels[0] * pixels[1], channels)), how))
    if config.position != "none":
        what = {"learned": "a learned vector", "sincos1d": "a fixed 1-D sine-cosine vector"}
        note = f"{what.get(config.position, 'a fixed 2-D sine-cosine vector')} per position"
        if (h, w) != config.grid:
            note += f", resampled from {_by(config.grid)} to {_by((h, w))}"
        rows.append(("+ positions", _by((h * w, d)), note))
    if config.num_prefix:
        note = "in front of the patches" + "; a position of CLS itself is folded into CLS" * config.cls
        rows.append((f"+ {', '.join(_prefix(config))}", _by(seen["blocks.0"][0]), note))

    rows.append((_count(config.depth, "block"), _by(seen["blocks.0"][1]), "each of them:"))
    each = d // heads
    mixer = f"{heads} heads of {each}; weights softmax(q kᵀ / √{each}), {_by((heads, n, n))}; linear {d} -> {d}"
    hidden = seen["blocks.0.mlp.w3" if config.mlp == "swiglu" else "blocks.0.mlp.fc2"][0][-1]
    inside = f"{d} -> {'2 x ' if config.mlp == 'swiglu' else ''}{hidden} -> {d}, {MLP_NAMES[config.mlp]}"
    scale, legend = ("γ · ", ", γ learned per channel") if config.layer_scale else ("", "")
    rows += [
        ("  LayerNorm", _by(seen["blocks.0.norm1"][1]), ""),
        ("  self-attention", _by(seen["blocks.0.attn"][1]), mixer),
        ("  + residual", _by(seen["blocks.0.norm2"][0]), f"x + {scale}attention(LayerNorm(x)){legend}"),
        ("  LayerNorm", _by(seen["blocks.0.norm2"][1]), ""),
        ("  MLP", _by(seen["blocks.0.mlp"][1]), inside),
        ("  + residual", _by(seen["blocks.0"][1]), f"x + {scale}MLP(LayerNorm(x)){legend}"),
    ]
    if config.final_norm:
        rows.append(("LayerNorm", _by(seen["norm"][1]), ""))
    if features.cls is not None:
        rows.append(("CLS", _by(features.cls.shape[1:]), "features.cls"))
    if config.num_registers:
        rows.append(("registers", _by(features.registers.shape[1:]), "features.registers"))
    rows.append(("patches", _by(features.patches.shape[1:]), "features.patches, the map: channels, rows, columns"))
    pool = {"cls": "CLS", "mean": "the mean of the patches"}[config.pool] + ", then LayerNorm" * config.fc_norm
    rows.append(("pooled", _by(features.pooled.shape[1:]), f"features.pooled: {pool}"))
    if num_classes is not None:
        rows.append(("logits", str(num_classes), CLASSIFIERS.get(layout, "a linear head on the pooled features")))
    return "\n".join(line.rstrip() for line in _columns(rows))


_TWO_HEADS = "the mean of two linear heads, on CLS and on the distillation token"
# Of the layouts whose classifier reads something else than the pooled features; see heads/classification.py
CLASSIFIERS = {
    "timm_distilled": _TWO_HEADS,
    "DeiTForImageClassificationWithTeacher": _TWO_HEADS,
    "dinov2_classifier": "a linear head on CLS and the mean of the patches side by side",
}
MLP_NAMES = {"gelu": "GELU between", "swiglu": "SiLU of one half times the other"}


def _on_meta(config: ViTConfig) -> ViT:
    with torch.device("meta"):
        return ViT(config).eval()


def _prefix(config: ViTConfig) -> list[str]:
    registers = [_count(config.num_registers, "register")] if config.num_registers else []
    return [*["CLS"] * config.cls, *registers]


def _size(resolution: Resolution) -> tuple[int, int]:
    return (resolution, resolution) if isinstance(resolution, int) else resolution


def _whole(size: tuple[int, int], patch: int, factor: float = 1) -> tuple[int, int]:
    """The size times a factor, in whole patches."""
    height, width = (max(1, round(side * factor / patch)) * patch for side in size)
    return height, width


def _grid(config: ViTConfig, size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the patches of an image of (H, W) pixels, padded to whole patches."""
    if min(size) < 1:
        raise ValueError(f"size must be at least 1 pixel a side, got {size}")
    return -(-size[0] // config.patch_size), -(-size[1] // config.patch_size)


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _digits(value: float) -> str:
    """At least three digits: 0.0123, 1.23, 12.3, 123, 1,234."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{_digits(count / size)} {unit}"
    return f"{_digits(count / 2**10)} KiB"


def _share(cost: Flops) -> str:
    return f"{100 * cost.attention / cost.total:.1f}%"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{n}}" for cell, n in zip(row, widths, strict=True)) for row in rows]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Right-aligned columns under a header."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return ["  " + "  ".join(f"{c:>{n}}" for c, n in zip(row, widths, strict=True)) for row in [header, *rows]]
