"""Registration of `Features` and the other results as trees of tensors (`torch.utils._pytree`).

`torch.export`, FSDP, DDP and `tree_map` then find the tensors in the results of a module.

The leaves are tensors. If all images of a batch have one size, that size and the number of images are leaves too. A
traced graph then computes them for each batch. Sizes that the example of a graph fixed are not leaves.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree

from vitbackbone.contract.features import (
    Attention,
    Features,
    Kept,
    Pooled,
    Prefix,
    pool_cls,
    pool_cls_or_mean,
    pool_mean,
)
from vitbackbone.contract.geometry import Geometry
from vitbackbone.contract.repeated import Repeated
from vitbackbone.contract.tracing import numbers

Parts = tuple[dict[str, Any], Any]  # the branches of a tree by their names, and what they are joined with

POOLS: dict[str, Callable[[Features], Any]] = {
    pool.__name__: pool for pool in (pool_cls, pool_mean, pool_cls_or_mean)
}  # by the names that an exported file holds


def _split_sizes(sizes: Mapping[str, int]) -> tuple[dict[str, int], tuple[int | None, ...]]:
    """Return the sizes that are leaves, and all sizes, with None for each leaf.

    An exporter of ONNX refuses numbers among the outputs. So sizes that the example fixed belong to the structure of
    the graph.
    """
    leaves = {name: size for name, size in sizes.items() if not (torch.compiler.is_exporting() and numbers(size))}
    return leaves, tuple(None if name in leaves else size for name, size in sizes.items())


def _join_sizes(leaves: Sequence[Any], fixed: Sequence[int | None]) -> list[Any]:
    left = iter(leaves)
    return [next(left) if size is None else size for size in fixed]


def _split_geometry(geometry: Geometry) -> Parts:
    sizes = geometry.sizes
    if not isinstance(sizes, Repeated):
        return {}, (geometry.stride, tuple(sizes), None, geometry.views)
    (height, width), steps = sizes.value, {} if geometry.steps is None else {"steps": geometry.steps}
    leaves, fixed = _split_sizes({"height": height, "width": width, "count": sizes.times, **steps})
    return leaves, (geometry.stride, None, fixed, geometry.views)


def _join_geometry(leaves: Sequence[Any], context: Any) -> Geometry:
    stride, sizes, fixed, views = context
    if sizes is None:
        height, width, count, *steps = _join_sizes(leaves, fixed)
        return Geometry(Repeated((height, width), count), stride, views, *steps)
    return Geometry(sizes, stride, views)


def _split_features(features: Features) -> Parts:
    pooled = features.pool.vectors if isinstance(features.pool, Pooled) else None
    pool = None if pooled is not None else features.pool
    tensors = {"cls": features.cls, "registers": features.registers, "patches": features.patches, "pooled": pooled}
    return {**tensors, "geometry": features.geometry}, pool


def _join_features(leaves: Sequence[Any], pool: Any) -> Features:
    cls, registers, patches, pooled, geometry = leaves
    return Features(cls, registers, patches, geometry, Pooled(pooled) if pool is None else pool)


def _dump_geometry(context: Any) -> Any:
    stride, sizes, fixed, views = context
    if views is not None:
        raise ValueError(
            "a graph whose geometry has views cannot be saved; call geometry.through on its result instead"
        )
    return stride, sizes, fixed


def _load_geometry(dumped: Any) -> Any:
    stride, sizes, fixed = dumped
    each = None if sizes is None else tuple((height, width) for height, width in sizes)
    return stride, each, None if fixed is None else tuple(fixed), None


def _dump_pool(pool: Any) -> Any:
    names = [name for name, known in POOLS.items() if known is pool]
    if pool is not None and not names:
        raise ValueError(f"a graph cannot save the pooling {pool!r}; read `pooled` inside the traced module instead")
    return names[0] if names else None


def _load_pool(name: Any) -> Any:
    return None if name is None else POOLS[name]


def _split_prefix(prefix: Prefix) -> Parts:
    return {"cls": prefix.cls, "registers": prefix.registers, "pooled": prefix.pooled}, None


def _join_prefix(leaves: Sequence[Any], _: None) -> Prefix:
    return Prefix(*leaves)


def _split_kept(kept: Kept) -> Parts:
    tensors = {"cls": kept.cls, "registers": kept.registers, "tokens": kept.tokens, "indices": kept.indices}
    return {**tensors, "geometry": kept.geometry}, None


def _join_kept(leaves: Sequence[Any], _: None) -> Kept:
    return Kept(*leaves)


def _split_attention(attention: Attention) -> Parts:
    (h, w), steps = attention.grid, {} if attention.steps is None else {"steps": attention.steps}
    leaves, fixed = _split_sizes({"h": h, "w": w, **steps})
    return {"weights": attention.weights, **leaves}, (attention.num_prefix, fixed)


def _join_attention(leaves: Sequence[Any], context: Any) -> Attention:
    num_prefix, fixed = context
    h, w, *steps = _join_sizes(leaves[1:], fixed)
    return Attention(leaves[0], num_prefix, (h, w), *steps)


def _load_attention(dumped: Any) -> Any:
    num_prefix, fixed = dumped
    return num_prefix, tuple(fixed)


def _register(
    kind: type, split: Callable[[Any], Parts], join: Callable[[Sequence[Any], Any], Any], **dumping: Any
) -> None:
    def flatten(value: Any) -> tuple[list[Any], Any]:
        branches, context = split(value)
        return list(branches.values()), context

    def flatten_with_keys(value: Any) -> tuple[list[Any], Any]:
        branches, context = split(value)
        return [(pytree.GetAttrKey(name), branch) for name, branch in branches.items()], context

    cast(Any, pytree).register_pytree_node(
        kind,
        flatten,
        join,
        serialized_type_name=f"vitbackbone.{kind.__name__}",
        flatten_with_keys_fn=flatten_with_keys,
        **dumping,
    )


def tree_leaves(tree: Any) -> list[Any]:
    """Return the leaves of a tree, such as the tensors of a call's arguments."""
    return pytree.tree_leaves(tree)


def register() -> None:
    """Register all results with torch. Called once, when the package is imported."""
    _register(
        Geometry,
        _split_geometry,
        _join_geometry,
        to_dumpable_context=_dump_geometry,
        from_dumpable_context=_load_geometry,
    )
    _register(
        Features, _split_features, _join_features, to_dumpable_context=_dump_pool, from_dumpable_context=_load_pool
    )
    _register(Prefix, _split_prefix, _join_prefix)
    _register(Kept, _split_kept, _join_kept)
    _register(
        Attention,
        _split_attention,
        _join_attention,
        to_dumpable_context=list,
        from_dumpable_context=_load_attention,
    )
