"""The keys of the last attention, which LOST and TokenCut compare."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vitbackbone.contract import BackboneModule, device_of
from vitbackbone.model import ViT


def key_map(backbone: BackboneModule, image: Float[Tensor, "3 H W"]) -> Float[Tensor, "D h w"]:
    """Return the keys of the last block's attention as a map, all heads side by side.

    They are the outputs of its linear layer, before any rotary positions. Raises `ValueError` if the backbone is no
    plain ViT.
    """
    if not isinstance(backbone, ViT) or backbone.engine is not None:
        raise ValueError(
            f"the keys of {backbone.spec.name} cannot be read; use a plain ViT that is not optimised, or --set "
            "features.features=outputs"
        )
    attention: Any = backbone.blocks[-1].attn
    with _caught(attention.qkv) as outputs:
        features = backbone(image[None].to(device_of(backbone) or torch.device("cpu")))
    h, w = features.grid
    keys = outputs[-1].split(attention.widths, dim=2)[1]
    return keys[0, -h * w :].T.unflatten(1, (h, w))


@contextmanager
def _caught(module: torch.nn.Module) -> Iterator[list[Tensor]]:
    """Collect the outputs of a module while the body runs."""
    outputs: list[Tensor] = []
    hook = module.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()
