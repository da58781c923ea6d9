"""Parameters of a backbone that no head reads.

They are the blocks after the deepest layer that is read, a final norm that is not applied, and a pooling that is not
read. They learn nothing, and DDP would wait for their gradients, so `rest` turns their gradients off.
"""

import weakref
from collections.abc import Iterable, Sequence, Set
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from vitbackbone import BackboneModule, Features, FusedBackbone, ViT, evaluating

Wanted = tuple[int, bool]  # a layer, 0-based, and whether the final norm is applied


@runtime_checkable
class Reader(Protocol):
    """A module with heads on a backbone."""

    used: frozenset[Wanted]
    pooled: bool  # whether `features.pooled` is read


_readers: "weakref.WeakKeyDictionary[nn.Module, weakref.WeakSet[Reader]]" = weakref.WeakKeyDictionary()


def remember(backbone: BackboneModule, reader: Reader) -> "weakref.WeakSet[Reader]":
    """Add a reader to those of the backbone, and return them. A copy of a reader reads the copied backbone."""
    readers = _readers.setdefault(backbone, weakref.WeakSet())
    readers.add(reader)
    return readers


def rest(backbone: BackboneModule, reader: Reader) -> None:
    """Turn off the gradients of the parameters that no living reader of the backbone reads, `reader` included.

    If an earlier call turned off parameters that are read now, their gradients are turned on again.
    """
    readers = remember(backbone, reader)
    resting = vars(backbone).get("resting", [])
    if any(p.requires_grad for p in backbone.parameters()):  # if none does, all were frozen in the meantime
        for parameter in resting:
            parameter.requires_grad_(True)
    used = set().union(*(each.used for each in readers))
    idle = [p for p in unread(backbone, used, any(each.pooled for each in readers)) if p.requires_grad]
    for parameter in idle:
        parameter.requires_grad_(False)
    vars(backbone)["resting"] = idle  # a plain attribute, so it is not a submodule and is copied with the backbone


def unread(backbone: BackboneModule, used: Set[Wanted], pooled: bool) -> list[nn.Parameter]:
    """Return the parameters that neither `forward_layers` uses for these layers nor `pooled`, if that is read."""
    if isinstance(backbone, ViT):
        return _of_vit(backbone, used, pooled)
    if isinstance(backbone, FusedBackbone):
        return _of_fused(backbone, used)
    return _of_any(backbone, used, pooled)


def _of_vit(backbone: ViT, used: Set[Wanted], pooled: bool) -> list[nn.Parameter]:
    modules: list[nn.Module | None] = list(backbone.blocks[max(layer for layer, _ in used) + 1 :])
    if not any(norm for _, norm in used):
        modules.append(backbone.norm)
    if not pooled:
        modules += [backbone.attn_pool, backbone.neck, backbone.fc_norm, backbone.projection]
    elif backbone.config.pool != "neck":
        modules.append(backbone.neck)
    return [parameter for module in modules if module is not None for parameter in module.parameters()]


def _of_fused(backbone: FusedBackbone, used: Set[Wanted]) -> list[nn.Parameter]:
    asked = {norm for _, norm in used}
    found = []
    for member, layer, own in zip(backbone.members, backbone.layers, backbone.norms, strict=True):
        of_member = {(layer, norm if backbone.has_norm else own) for norm in asked}
        found += unread(cast(BackboneModule, member), of_member, pooled=False)
    return found


def _of_any(backbone: BackboneModule, used: Set[Wanted], pooled: bool) -> list[nn.Parameter]:
    """Find the parameters by a forward of a small image: its graph leads to every parameter that is used.

    Return no parameter if the backbone runs neither the small image nor one of its own size.
    """
    learning = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if not learning:
        return []
    spec = backbone.spec
    layers, norms = zip(*sorted(used), strict=True)
    with evaluating(backbone), torch.inference_mode(False), torch.enable_grad():
        for size in ((2 * max(spec.strides),) * 2, spec.image_size):
            images = torch.zeros(1, spec.in_chans, *size, dtype=learning[0].dtype, device=learning[0].device)
            try:
                found = _tensors(backbone.forward_layers(images, layers, norms), pooled)
            except (ValueError, RuntimeError):  # the network takes only one size, or only larger ones
                continue
            seen = _leaves(found)
            return [parameter for parameter in learning if id(parameter) not in seen]
    return []


def _tensors(features: Iterable[Features], pooled: bool) -> list[Tensor]:
    found = []
    for each in features:
        found += [each.patches, each.registers, *([] if each.cls is None else [each.cls])]
        found += [each.pooled] if pooled else []
    return found


def _leaves(outputs: Sequence[Tensor]) -> set[int]:
    """Return the ids of the tensors that a backward pass would reach."""
    left = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen, leaves = set(left), set()
    while left:
        node = left.pop()
        leaves.add(id(getattr(node, "variable", None)))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                left.append(following)
    return leaves
