"""What a Vision Transformer costs: counted while it runs on torch's `meta` device, which knows shapes and holds no
numbers, so no weights are needed and there is no formula to fall behind the network.

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
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vitbackbone.model import ViT, ViTConfig

aten = torch.ops.aten
FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Costs:
    """What `backbone(images)` takes, without gradients.

    The first four are floating-point operations. A multiply-accumulate counts as 2, as torch's `FlopCounterMode` does;
    papers often count it as 1 and say "FLOPs" too. Norms, softmax, activation functions and additions are left out.
    The last two are bytes in float32, weights not counted.
    """

    embed: int  # images to patch tokens
    linear: int  # query, key, value, output projection and MLP of all blocks: grows with N
    attention: int  # q kᵀ, weights · v and the bias of relative positions: grows with N², within windows with N
    pooling: int  # what `features.pooled` adds when it is asked for; not in `flops`
    activations: int  # the most that lives at once, the images included, with the fused attention kernel
    attention_map: int  # the largest block's weights, (B, heads, N, N) without windows; that kernel never writes them

    @property
    def flops(self) -> int:
        return self.embed + self.linear + self.attention


def on_meta(config: ViTConfig) -> ViT:
    with torch.inference_mode(False), torch.device("meta"):  # which makes tensors that cannot be counted
        return ViT(config).eval()


@cache
def parameters(config: ViTConfig) -> int:
    """Parameters of the `ViT`: with fixed position tables, pooling and projection; without a classification head."""
    return sum(p.numel() for p in on_meta(config).parameters())


def windowed_blocks(config: ViTConfig) -> int:
    """How many blocks attend within windows."""
    return config.depth - len(set(config.global_blocks)) if config.window else 0


@cache
def costs(config: ViTConfig, size: tuple[int, int], batch: int = 1) -> Costs:
    """The costs of `batch` images of (H, W) pixels.

    Tables that stay between forwards (of rotary and relative positions) are left out of the activations; workspace
    inside torch's kernels, and what an allocator rounds up or keeps, come on top.
    Raises `ValueError` on a size that the configuration refuses.
    """
    # Blocks of a kind cost the same, so one of each is run.
    windowed = windowed_blocks(config)
    kinds = [count for count in (windowed, config.depth - windowed) if count]
    last = (len(kinds) - 1,) if config.window and windowed < config.depth else ()
    model = on_meta(replace(config, depth=len(kinds), global_blocks=last))
    with torch.inference_mode(False), torch.no_grad(), torch.device("meta"):
        with FlopCounterMode(display=False) as forward:
            features = model(torch.empty(batch, 3, *size))
        with FlopCounterMode(display=False) as pooling:
            _ = features.pooled
        del features
        with _Memory() as memory, _FusedAttention() as fused:  # a second forward: tables that stay are there
            model(torch.empty(batch, 3, *size))

    counts: dict[str, dict[Any, int]] = forward.get_flop_counts()  # of each module and operation
    linear = attention = 0
    for i, blocks in enumerate(kinds):
        for operation, count in counts[f"ViT.blocks.{i}"].items():
            if operation is aten.bmm:  # what torch takes attention apart into, on the meta device
                attention += blocks * count
            else:
                linear += blocks * count
    embed = sum(counts["ViT.patch_embed"].values())
    return Costs(embed, linear, attention, pooling.get_total_flops(), memory.peak, FLOAT32 * fused.attention_map)


class _FusedAttention(TorchFunctionMode):
    """Attention as the fused kernels do it, which do not run on the meta device: they write what is as large as q, and
    the logarithm of each row's sum."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_map = 0  # entries of the largest

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, _ = args
        self.attention_map = max(self.attention_map, q[..., 0].numel() * k.shape[-2])
        _sums, mixed = q.new_empty(q.shape[:-1], dtype=torch.float32), torch.empty_like(q)
        return mixed


class _Memory(TorchDispatchMode):
    """The most bytes of tensors alive at once, of those made within."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}  # bytes of each storage
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        outputs = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata not in given | self.alive.keys():  # no view
                self.alive[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._forget, storage._cdata)
        self.peak = max(self.peak, self.now)
        return outputs

    def _forget(self, key: int) -> None:
        self.now -= self.alive.pop(key)
