"""A ViT as a graph of OpenVINO operations. Nothing is traced, so the graph takes any batch and any patch grid. It is
made in a tenth of a second; a traced conversion takes half a minute.

torch makes everything that depends on the patch grid and gives it to the graph (see `tables`). It does nothing else:
after each operation of torch, its threads wait in a busy loop for two milliseconds and keep the cores from OpenVINO.

Axes: `B` batch, `N` tokens, `P` of them CLS and registers, `D` width, `d` width of a head, `I` width into a linear
layer, `h w` patch grid.
"""

from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple, cast

import numpy as np
import openvino as ov
import torch
from jaxtyping import Float, Shaped
from openvino import opset15 as ops
from torch import Tensor, nn

from vitbackbone.contract import Wanted
from vitbackbone.model import (
    Block,
    ClippedLinear,
    ConvStem,
    ExpertMlp,
    GatedMlp,
    Grid,
    LayerScale,
    Mlp,
    RelativeTable,
    Rotary,
    SelfAttention,
    ViT,
    ViTConfig,
    WindowAttention,
    rotary_table,
)
from vitbackbone.runtime.int8 import InputScaling, Int8Weights, Seen
from vitbackbone.runtime.openvino_projections import channels, qk_norms, qkv
from vitbackbone.runtime.openvino_tables import tables

Value = Any  # the result of an operation: OpenVINO's types do not tell nodes from their outputs

ACTIVATIONS: dict[str, Callable[[Value], Value]] = {
    "gelu": lambda x: ops.gelu(x, "ERF"),
    "gelu_tanh": lambda x: ops.gelu(x, "TANH"),
    "quick_gelu": lambda x: ops.swish(x, np.float32(1.702)),
    "relu": ops.relu,
}
GATES: dict[str, Callable[[Value], Value]] = {
    "swiglu": ops.swish,
    "geglu": ACTIVATIONS["gelu"],
    "geglu_tanh": ACTIVATIONS["gelu_tanh"],
}


def build(
    vit: ViT,
    wanted: Set[Wanted],
    prefix: bool,
    seen: Mapping[nn.Module, Seen],
    grid: Grid | None = None,
    batch: int = -1,
) -> ov.Model:
    """Build the graph from images (B, C, H, W) to the tokens (B, N, D) of each layer of `wanted`, in ascending order.

    `prefix`: give only CLS and registers, (B, P, D), and skip work for patches that these do not need.
    `seen`: the linear layers that run in 8 bits, with their input ranges.
    `grid`: the one patch grid of all images. The tables are constants then, and kernels are up to a tenth faster.
    `batch`: the number of images; -1 is any number. A graph for one image makes small networks a tenth faster again.
    The graph shares the memory of the other parameters with `vit`.
    """
    deepest = max(layer for layer, _ in wanted)
    graph = GraphBuilder(vit.config, seen, {} if grid is None else tables(vit, deepest, grid))
    side = vit.config.patch_size
    height, width = (-1, -1) if grid is None else (side * grid[0], side * grid[1])
    x = graph.embed(vit, graph.input("images", batch, vit.config.channels, height, width))
    results = []
    for i, block in enumerate(vit.blocks[: deepest + 1]):
        x = graph.block(i, cast(Block, block), x, prefix and i == deepest)
        taken = graph.prefix(x) if prefix and i < deepest else x
        if (i, False) in wanted:
            results.append(ops.result(taken))
        if (i, True) in wanted:
            results.append(ops.result(graph.norm(vit.norm_of(i), taken)))
    return ov.Model(results, list(graph.inputs.values()), vit.spec.name)


def build_linear(linear: nn.Linear, seen: Seen) -> ov.Model:
    """Build the graph of one 8-bit linear layer, from (N, I)."""
    graph = GraphBuilder(ViTConfig(), {linear: seen}, {})
    return ov.Model([ops.result(graph.linear(linear, graph.input("x", -1, linear.in_features)))], [graph.inputs["x"]])


class LinearInput(NamedTuple):
    """The input of a linear layer. In 8 bits its channels are divided by `factors`, and the weights multiplied."""

    value: Value
    factors: Float[Tensor, " I"] | None


class GraphBuilder:
    """A builder of a graph. Each method adds the module of its name, or a step of it.

    `known`: constants that take the place of inputs, by name.
    """

    def __init__(self, config: ViTConfig, seen: Mapping[nn.Module, Seen], known: Mapping[str, Tensor]) -> None:
        self.config = config
        self.seen = seen
        self.known = known
        self.width = config.head_width
        self.inputs: dict[str, Value] = {}

    def input(self, name: str, *shape: int, dtype: type = np.float32) -> Value:
        """Return the input of this name, which all blocks share; -1 is any length."""
        if name in self.known:
            return _constant(self.known[name])
        if name not in self.inputs:
            self.inputs[name] = ops.parameter(list(shape), dtype, name)
            self.inputs[name].output(0).set_names({name})
        return self.inputs[name]

    def block(self, index: int, block: Block, x: Value, prefix: bool) -> Value:
        """Add a block. With `prefix`, only CLS and registers ask; keys and values are of all tokens."""
        if block.waits:
            ahead = self.prefix(x)
            return ahead if prefix else ops.concat([ahead, self.run(index, block, self.behind(x), prefix=False)], 1)
        return self.run(index, block, x, prefix)

    def run(self, index: int, block: Block, x: Value, prefix: bool) -> Value:
        mixed = self.norm(block.post1, self.attention(index, block.attn, self.norm(block.norm1, x), prefix))
        x = self.norm(block.sum1, ops.add(self.prefix(x) if prefix else x, self.scale(block.ls1, mixed)))
        hidden = self.norm(block.post2, self.mlp(block.mlp, self.norm(block.norm2, x)))
        return self.norm(block.sum2, ops.add(x, self.scale(block.ls2, hidden)))

    def behind(self, x: Value) -> Value:
        """Return the patches."""
        return ops.slice(x, [self.config.num_prefix], [np.iinfo(np.int64).max], [1], [1])

    def prefix(self, x: Value) -> Value:
        return ops.slice(x, [0], [self.config.num_prefix], [1], [1])

    # ---- images to tokens -----------------------------------------------------------------------------------------

    def embed(self, vit: ViT, x: Value) -> Value:
        if isinstance(vit.patch_embed, ConvStem):
            for layer in vit.patch_embed.convs:
                x = self.stem(layer, x)
        x = self.convolution(cast(nn.Conv2d, vit.patch_embed.proj), x)  # clips have no graph, so this is no ClipEmbed
        x = self.norm(vit.embed_norm, ops.transpose(ops.reshape(x, [0, self.config.dim, -1], True), [0, 2, 1]))
        if vit.pos_embed is not None:
            x = ops.add(x, self.input("positions", -1, self.config.dim))
        tokens: list[Tensor] = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
        if tokens:
            shape = _shape(ops.gather(ops.shape_of(x), [0], np.int64(0)), [vit.config.num_prefix, self.config.dim])
            first = ops.broadcast(_constant(torch.cat(tokens, dim=1)), shape)
            x = ops.concat([first, x], 1)
        return self.norm(vit.norm_pre, x)

    def stem(self, layer: nn.Module, x: Value) -> Value:
        if isinstance(layer, nn.Conv2d):
            return self.convolution(layer, x)
        if isinstance(layer, nn.BatchNorm2d):
            parts = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
            return ops.batch_norm_inference(x, *(_constant(cast(Tensor, part)) for part in parts), layer.eps)
        return ACTIVATIONS["gelu"](x)

    def convolution(self, conv: nn.Conv2d, x: Value) -> Value:
        pad = list(conv.padding)
        x = ops.convolution(x, _constant(conv.weight), list(conv.stride), pad, pad, [1, 1])
        return x if conv.bias is None else ops.add(x, _constant(conv.bias[:, None, None]))

    # ---- linear layers, norms, the MLP ----------------------------------------------------------------------------

    def linear(self, linear: nn.Linear, x: Value) -> Value:
        if not isinstance(linear, ClippedLinear):
            return self.product(self.rounded(linear, x), linear.weight, linear.bias)
        biases = [None] * len(linear.widths) if linear.bias is None else linear.bias.split(linear.widths)
        each = zip(linear.weight.split(linear.widths), biases, strict=True)
        rows = LinearInput(x, None)
        parts = [self.part(linear, i, rows, weight, bias) for i, (weight, bias) in enumerate(each)]
        return parts[0] if len(parts) == 1 else ops.concat(parts, -1)

    def part(self, linear: nn.Linear, index: int, x: "LinearInput", weight: Tensor, bias: Tensor | None) -> Value:
        """Multiply by one part of a layer that stands for several, within its limits if it has some."""
        if not isinstance(linear, ClippedLinear):
            return self.product(x, weight, bias)
        low, high, least, most = linear.limits[:, index].tolist()
        return ops.clamp(self.product(LinearInput(ops.clamp(x.value, low, high), x.factors), weight, bias), least, most)

    def rounded(self, linear: nn.Linear, x: Value) -> "LinearInput":
        """Round the input of the layer if it runs in 8 bits. OpenVINO computes a product in 8 bits if this operation
        stands before it."""
        if linear not in self.seen:
            return LinearInput(x, None)
        factors, steps = InputScaling.of(self.seen[linear], linear.weight.detach())
        low, high = (np.float32(steps.scale * (value - steps.zero)) for value in (0, 255))
        return LinearInput(
            ops.fake_quantize(ops.multiply(x, _constant(1 / factors)), low, high, low, high, 256), factors
        )

    def product(self, x: "LinearInput", weight: Tensor, bias: Tensor | None) -> Value:
        values = _constant(weight)
        if x.factors is not None:
            rounded = Int8Weights.of(weight.detach() * x.factors, None)
            values = ops.multiply(
                ops.convert(_constant(rounded.values), np.float32), _constant(rounded.scales[:, None])
            )
        y = ops.matmul(x.value, values, transpose_a=False, transpose_b=True)
        return y if bias is None else ops.add(y, _constant(bias))

    def norm(self, norm: nn.Module | None, x: Value) -> Value:
        if isinstance(norm, nn.LayerNorm):
            x = ops.mvn(x, [-1], normalize_variance=True, eps=norm.eps, eps_mode="inside_sqrt")
            return ops.add(ops.multiply(x, _constant(norm.weight)), _constant(norm.bias))
        if isinstance(norm, nn.RMSNorm):
            return ops.multiply(self.root_mean_square(x, cast(float, norm.eps)), _constant(norm.weight))
        return x

    def root_mean_square(self, x: Value, eps: float) -> Value:
        """Divide the channels of each token by their root mean square."""
        mean = ops.reduce_mean(ops.multiply(x, x), [-1], keep_dims=True)
        return ops.multiply(x, ops.power(ops.add(mean, np.float32(eps)), np.float32(-0.5)))

    def scale(self, scale: nn.Module, x: Value) -> Value:
        return ops.multiply(x, _constant(scale.gamma)) if isinstance(scale, LayerScale) else x

    def mlp(self, mlp: Mlp | GatedMlp | ExpertMlp, x: Value) -> Value:
        assert not isinstance(mlp, ExpertMlp)  # `OpenVinoBackbone` refuses it
        if isinstance(mlp, Mlp):
            x = ACTIVATIONS[self.config.mlp](self.linear(mlp.fc1, x))
            return self.linear(mlp.fc2, x)
        gate, value = ops.split(self.linear(mlp.w12, x), -1, 2).outputs()
        x = ops.multiply(GATES[self.config.mlp](gate), value)
        return self.linear(mlp.w3, self.norm(mlp.norm, x))

    # ---- attention ------------------------------------------------------------------------------------------------

    def attention(self, index: int, attn: SelfAttention, x: Value, prefix: bool) -> Value:
        inside = isinstance(attn, WindowAttention)
        q, k, v = self.split(attn, self.cut(x) if inside else x, prefix)
        bias = self.bias(index, attn, q, prefix)
        if self.config.rotary:
            table = self.rotary(index, attn, self.config.rotary)
            q, k = self.turn(table, q, prefix), self.turn(table, k, False)
        k, v = (self.repeat(attn, each) for each in (k, v))
        # Written out: OpenVINO fuses this as it fuses its own operation, which would transpose the keys first.
        scores = ops.matmul(q, k, transpose_a=False, transpose_b=True)
        if isinstance(attn, WindowAttention) and attn.cuts:
            scores = self.without_padding(attn.window, scores)
        weights = ops.softmax(scores if bias is None else ops.add(scores, bias), -1)
        mixed = ops.transpose(ops.matmul(weights, v, transpose_a=False, transpose_b=False), [0, 2, 1, 3])
        x = self.norm(attn.norm, ops.reshape(mixed, [0, 0, attn.widths[0]], True))
        x = self.linear(attn.proj, x)
        return self.uncut(x) if inside else x

    def split(self, attn: SelfAttention, x: Value, prefix: bool) -> list[Value]:
        """Return queries, keys and values of each head, (B, heads, N, d). Three products avoid the copies that
        splitting one would need."""
        given = self.rounded(attn.qkv, x)
        asked = self.rounded(attn.qkv, self.prefix(x)) if prefix else given
        parts = zip((asked, given, given), qkv(attn, self.config), strict=True)
        q, k, v = (self.part(attn.qkv, i, rows, weight, bias) for i, (rows, (weight, bias)) in enumerate(parts))
        q_norm, k_norm = qk_norms(attn, self.config)
        if attn.qk_norm == "full":
            q, k = self.norm(q_norm, q), self.norm(k_norm, k)
        elif attn.qk_norm == "none" and self.config.clipped:
            k = ops.multiply(k, np.float32(self.width**-0.5))
        q, k, v = self.heads(q), self.heads(k), self.heads(v)
        if attn.qk_norm == "head":
            q, k = self.norm(q_norm, q), self.norm(k_norm, k)
        return [q, k, v if attn.v_eps is None else self.root_mean_square(v, attn.v_eps)]

    def heads(self, x: Value) -> Value:
        return ops.transpose(ops.reshape(x, [0, 0, -1, self.width], True), [0, 2, 1, 3])

    def repeat(self, attn: SelfAttention, x: Value) -> Value:
        """Give each head of the queries its keys or values, which several may share."""
        if attn.repeats == 1:
            return x
        shared = ops.tile(ops.unsqueeze(x, [2]), np.array([1, 1, attn.repeats, 1, 1]))  # B kv repeats N d
        return ops.reshape(shared, _shape([0, self.config.num_heads], [-1, self.width]), True)

    def rotary(self, index: int, attn: SelfAttention, rotary: Rotary) -> Value:
        """Return the rotary table of the tokens among which a block attends."""
        if isinstance(attn, WindowAttention):
            table = rotary_table(rotary, self.width, (attn.window, attn.window), torch.device("cpu"))
            return _constant(table[..., channels(self.config)])
        return self.input(f"rotary.{index}" if rotary.cls_angles else "rotary", 2, -1, self.width)

    def turn(self, table: Value, x: Value, prefix: bool) -> Value:
        """Rotate queries or keys by their positions. The angles of CLS and registers are zero, unless learned."""
        assert self.config.rotary is not None
        if prefix and not self.config.rotary.cls_angles:
            return x
        table = ops.slice(table, [0], [self.config.num_prefix], [1], [1]) if prefix else table
        cos, sin = ops.split(table, 0, 2).outputs()
        first, second = ops.split(x, -1, 2).outputs()
        across = ops.concat([ops.negative(second), first], -1)
        return ops.add(ops.multiply(x, cos), ops.multiply(across, sin))

    def without_padding(self, side: int, scores: Value) -> Value:
        """Keep the tokens of windows over the edge from attending to padding. `scores`: (B windows, heads, K, K)."""
        rows, columns = self.windows()
        keys, heads = side**2, self.config.num_heads
        each = ops.reshape(scores, _shape([-1], ops.multiply(rows, columns), [heads, keys, keys]), False)
        each = ops.add(each, self.input("filled", -1, 1, 1, keys))
        return ops.reshape(each, [-1, heads, keys, keys], False)

    def bias(self, index: int, attn: SelfAttention, q: Value, prefix: bool) -> Value | None:
        """Return the bias of relative positions for the scores, (B, heads, N, N)."""
        if isinstance(attn.rel_pos, RelativeTable):
            bias = self.input(f"bias.{index}", 1, self.config.num_heads, -1, -1)
            return ops.slice(bias, [0], [self.config.num_prefix], [1], [2]) if prefix else bias
        if attn.rel_pos is None:
            return None
        if isinstance(attn, WindowAttention):
            side = attn.window
            grid: Value = np.array([side, side])
            rows, columns = (_constant(pairs) for pairs in attn.rel_pos.pairs((side, side)))
        else:
            grid = self.input("grid", 2, dtype=np.int64)
            rows, columns = (self.input(f"{name}.{index}", -1, -1, self.width) for name in ("rows", "columns"))
        q = ops.reshape(q, _shape([0, 0], grid, [self.width]), True)  # B heads h w d
        by_row = ops.matmul(q, rows, transpose_a=False, transpose_b=True)  # B heads h w y
        by_column = ops.matmul(ops.transpose(q, [0, 1, 3, 2, 4]), columns, transpose_a=False, transpose_b=True)
        by_column = ops.transpose(by_column, [0, 1, 3, 2, 4])  # B heads h w x
        both = ops.add(ops.unsqueeze(by_row, [-1]), ops.unsqueeze(by_column, [-2]))
        tokens = ops.reduce_prod(grid, [0], keep_dims=True)
        return ops.reshape(both, _shape([0, 0], tokens, tokens), True)

    # ---- windows --------------------------------------------------------------------------------------------------

    def cut(self, x: Value) -> Value:
        """Return the windows of all images as a batch, after padding each image with zeros to whole windows."""
        side, dim = self.config.window, self.config.dim
        image = ops.reshape(x, _shape([-1], self.input("grid", 2, dtype=np.int64), [dim]), False)
        image = ops.pad(image, [0, 0, 0, 0], self.input("padding", 4, dtype=np.int64), "constant", np.float32(0))
        rows, columns = self.windows()
        tiles = ops.reshape(image, _shape([-1], rows, [side], columns, [side, dim]), False)
        return ops.reshape(ops.transpose(tiles, [0, 1, 3, 2, 4, 5]), [-1, side**2, dim], False)

    def uncut(self, x: Value) -> Value:
        """Join windows to images, and cut the padding off."""
        side, dim = self.config.window, self.config.dim
        rows, columns = self.windows()
        tiles = ops.reshape(x, _shape([-1], rows, columns, [side, side, dim]), False)
        height, width = ops.multiply(rows, np.int64(side)), ops.multiply(columns, np.int64(side))
        image = ops.reshape(ops.transpose(tiles, [0, 1, 3, 2, 4, 5]), _shape([-1], height, width, [dim]), False)
        image = ops.slice(image, [0, 0], self.input("grid", 2, dtype=np.int64), [1, 1], [1, 2])
        return ops.reshape(image, [0, -1, dim], True)

    def windows(self) -> list[Value]:
        """Return the numbers of rows and columns of windows in an image."""
        return ops.split(self.input("windows", 2, dtype=np.int64), 0, 2).outputs()


def _constant(tensor: Shaped[Tensor, "..."]) -> Value:
    return ops.constant(tensor.detach().contiguous().numpy(), shared_memory=True)


def _shape(*parts: Value) -> Value:
    """Join lists of numbers and values of the graph to one shape."""
    return ops.concat([np.array(part) if isinstance(part, list) else part for part in parts], 0)
