"""Registration of `Features` and the other results as trees of tensors (`torch.utils._pytree`).

`torch.export`, FSDP, DDP and `tree_map` then find the tensors in the results of a module.

The leaves are tensors. If all images of a batch have one size, that size and the number of images are leaves too. A
traced graph then computes them for each batch. Sizes that the example of a graph fixed are not leaves.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree

from vitbackbone.contract.features import Attention, Features, Pooled, Prefix, pool_cls, pool_cls_or_mean, pool_mean
from vitbackbone.contract.geometry import Geometry
from vitbackbone.contract.repeated import Repeated
from vitbackbone.contract.tracing import numbers

Parts = tuple[list[Any], Any]

POOLS: dict[str, Callable[[Features], Any]] = {
    pool.__name__: pool for pool in (pool_cls, pool_mean, pool_cls_or_mean)
}  # by the names that an exported file holds


def _split_geometry(geometry: Geometry) -> Parts:
    sizes = geometry.sizes
    if not isinstance(sizes, Repeated):
        return [], (geometry.stride, tuple(sizes), None, geometry.views)
    parts = (*sizes.value, sizes.times, *([] if geometry.steps is None else [geometry.steps]))
    # An exporter of ONNX refuses numbers among the outputs: those that are fixed belong to the structure of the graph.
    fixed = tuple(part if torch.compiler.is_exporting() and numbers(part) else None for part in parts)
    leaves = [part for part, known in zip(parts, fixed, strict=True) if known is None]
    return leaves, (geometry.stride, None, fixed, geometry.views)


def _join_geometry(leaves: Sequence[Any], context: Any) -> Geometry:
    stride, sizes, fixed, views = context
    if sizes is None:
        left = iter(leaves)
        height, width, count, *steps = (next(left) if known is None else known for known in fixed)
        return Geometry(Repeated((height, width), count), stride, views, *steps)
    return Geometry(sizes, stride, views)


def _split_features(features: Features) -> Parts:
    pooled = features.pool.vectors if isinstance(features.pool, Pooled) else None
    pool = None if pooled is not None else features.pool
    return [features.cls, features.registers, features.patches, pooled, features.geometry], pool


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
    return [prefix.cls, prefix.registers, prefix.pooled], None


def _join_prefix(leaves: Sequence[Any], _: None) -> Prefix:
    return Prefix(*leaves)


def _split_attention(attention: Attention) -> Parts:
    steps = [] if attention.steps is None else [attention.steps]
    return [attention.weights, *attention.grid, *steps], attention.num_prefix


def _join_attention(leaves: Sequence[Any], num_prefix: Any) -> Attention:
    weights, h, w, *steps = leaves
    return Attention(weights, num_prefix, (h, w), *steps)


def _register(
    kind: type, split: Callable[[Any], Parts], join: Callable[[Sequence[Any], Any], Any], **dumping: Any
) -> None:
    cast(Any, pytree).register_pytree_node(
        kind, split, join, serialized_type_name=f"vitbackbone.{kind.__name__}", **dumping
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
    _register(Attention, _split_attention, _join_attention)
