"""Costs of a Vision Transformer, counted while it runs on torch's `meta` device.

That device knows shapes and holds no numbers, so no weights are needed. No formula can disagree with the network.

Axes: `B` batch, `N` tokens, `H W` pixels.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vitbackbone.contract import tree_leaves
from vitbackbone.model import ViT, ViTConfig, make_vit

aten = torch.ops.aten
FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Costs:
    """Compute and memory of `backbone(images)`, without gradients.

    The first four are floating-point operations. A multiply-accumulate counts as 2, as in torch's `FlopCounterMode`;
    papers often count it as 1 and call that FLOPs too. Norms, softmax, activation functions and additions are left
    out. The resampling of position tables is not counted either. It reads no image: it happens once for a whole batch,
    or never if the tables are cached. The last two are bytes in float32, without the weights.
    """

    embed: int  # images to patch tokens
    linear: int  # query, key, value, output projection and MLP of all blocks: grows with N
    attention: int  # q kᵀ, weights · v and the bias of relative positions: grows with N², within windows with N
    pooling: int  # added by `features.pooled`, if it is asked for; not in `flops`
    activations: int  # peak of all live tensors, the images included, with the fused attention kernel
    attention_map: int  # the largest (B, heads, N, N) of a block, or less in windows; the fused kernel never writes it

    @property
    def flops(self) -> int:
        return self.embed + self.linear + self.attention


def on_meta(config: ViTConfig) -> ViT:
    """Return the network on the meta device, in evaluation mode."""
    with torch.inference_mode(False), torch.device("meta"):  # tensors of inference mode cannot be counted
        return make_vit(config).eval()


@cache
def parameters(config: ViTConfig) -> int:
    """Count the parameters of the `ViT`, with fixed position tables, pooling and projection, without a classifier."""
    model, kinds = _one_of_each_kind(config)
    counted = sum(p.numel() for p in model.parameters())
    counted += len(config.tap_norms) * sum(p.numel() for p in model.norm.parameters()) if model.norm is not None else 0
    for block, count in zip(model.blocks, kinds, strict=True):
        counted += (count - 1) * sum(p.numel() for p in block.parameters())
    return counted


def windowed_blocks(config: ViTConfig) -> int:
    """Count the blocks that attend within windows."""
    return config.depth - len(set(config.global_blocks)) if config.window else 0


def _one_of_each_kind(config: ViTConfig) -> tuple[ViT, list[int]]:
    """Return the network with one block of each kind, and the number of blocks of each kind.

    Blocks of one kind have the same costs, and most of the time on the meta device goes into making blocks.
    """
    if config.views is not None:  # their blocks differ in norms and rotary positions
        return on_meta(config), [1] * config.depth
    windowed = windowed_blocks(config)
    kinds = [count for count in (windowed, config.depth - windowed) if count]
    last = (len(kinds) - 1,) if config.window and windowed < config.depth else ()
    return on_meta(replace(config, depth=len(kinds), global_blocks=last, tap_norms=())), kinds


@cache
def costs(config: ViTConfig, size: tuple[int, int], batch: int = 1) -> Costs:
    """Return the costs of `batch` images of (H, W) pixels.

    The activations leave out tables that stay between forwards, such as rotary positions. They also leave out the
    workspace of torch's kernels and the reserve of the allocator.
    Raises `ValueError` on a size that the configuration refuses, and for a network of tiles.
    """
    if config.tiles is not None:
        raise ValueError("costs are known for networks of whole images only, and this one runs all tiles of an image")
    model, kinds = _one_of_each_kind(config)
    with torch.inference_mode(False), torch.no_grad(), torch.device("meta"):
        with FlopCounterMode(display=False) as forward:
            features = model(torch.empty(batch, config.channels, *size))
        with FlopCounterMode(display=False) as pooling:
            _ = features.pooled
        del features
        # The first forward has made the tables that stay, so the second one does not count them.
        with _Memory() as memory, _FusedAttention() as fused:
            model(torch.empty(batch, config.channels, *size))

    counts: dict[str, dict[Any, int]] = forward.get_flop_counts()  # by module and operation
    linear = attention = 0
    for i, blocks in enumerate(kinds):
        tables = counts.get(f"ViT.blocks.{i}.attn.rel_pos", {})  # their resampling, and the bias
        for operation, count in counts[f"ViT.blocks.{i}"].items():
            if operation is aten.bmm:  # on the meta device, torch splits attention and its bias into these products
                attention += blocks * count
            else:
                linear += blocks * (count - tables.get(operation, 0))
    embed = sum(counts["ViT.patch_embed"].values())
    return Costs(embed, linear, attention, pooling.get_total_flops(), memory.peak, FLOAT32 * fused.attention_map)


class _FusedAttention(TorchFunctionMode):
    """Stand-in for the fused attention kernels, which do not run on the meta device.

    They write one tensor of the size of q, and the logarithm of the sum of each row.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention_map = 0  # entries of the largest map

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, _ = args
        self.attention_map = max(self.attention_map, q[..., 0].numel() * k.shape[-2])
        # The kernel also allocates the sums, so they count.
        _sums, mixed = q.new_empty(q.shape[:-1], dtype=torch.float32), torch.empty_like(q)
        return mixed


class _Memory(TorchDispatchMode):
    """Peak bytes of the live tensors that are made while this mode is on."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}  # bytes by storage
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        outputs = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata not in given | self.alive.keys():  # not a view
                self.alive[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._forget, storage._cdata)
        self.peak = max(self.peak, self.now)
        return outputs

    def _forget(self, key: int) -> None:
        self.now -= self.alive.pop(key)
