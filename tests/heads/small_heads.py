"""A small head of every name, the backbones that it fits, and how its output is read."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from heads import Head, Segmenter, create_head
from tests.helpers import randomise, tiny_vit
from tests.timm_networks import BACKBONES as NETWORKS
from vitbackbone import BackboneModule, Features

# The options of a small head of each name. A head that is not here fails `test_every_head_is_held_to_the_contract`.
OPTIONS: dict[str, dict[str, object]] = {
    "aim_probe": {"num_classes": 5},
    "concat": {"num_classes": 5},
    "distilled": {"num_classes": 5},
    "dpt": {"num_classes": 5, "channels": 16},
    "dpt_depth": {"channels": 16},
    "eomt": {"num_classes": 5, "num_queries": 4},
    "fpn": {"channels": 8, "strides": [4, 8]},
    "keypoint_encoder": {"num_keypoints": 4},
    "linear": {"num_classes": 5},
    "linear_depth": {},
    "map_pool": {"num_heads": 4},
    "mlp": {"num_classes": 5, "hidden": 8},
    "multilayer": {"num_classes": 5},
    "openvla_projector": {"width": 8},
    "perceiver_resampler": {"num_latents": 3, "depth": 2, "num_heads": 2, "head_dim": 8},
    "policy_neck": {"width": 8},
    "simple_pyramid": {"channels": 8},
    "space_to_depth": {"projection": "linear", "width": 8},
    "spatial_softmax": {"num_keypoints": 4},
    "token_projector": {"width": 8},
    "upernet": {"num_classes": 5, "channels": 16},
    "vjepa_probe": {"num_classes": 5},
}

BACKBONES: dict[str, Callable[[], BackboneModule]] = {
    "patch 8": lambda: tiny_vit(depth=6, num_registers=1),
    "patch 14": lambda: tiny_vit(depth=6, num_registers=1, patch_size=14, image_size=(56, 56)),
    "levels": lambda: copy.deepcopy(NETWORKS["swin sized"]),  # of strides 4, 8, ...
}
FITTING = {"fpn": ["levels"]}  # by default those of one stride
PAIRS = [(name, backbone) for name in OPTIONS for backbone in FITTING.get(name, ["patch 8", "patch 14"])]
DENSE = ["dpt", "dpt_depth", "eomt", "linear", "linear_depth", "multilayer", "upernet"]


def images(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def make(name: str, backbone: BackboneModule) -> Any:
    return randomise(create_head(name, backbone.spec, **OPTIONS[name]))


def tensors(output: object) -> list[Tensor]:
    """Return all tensors of a head's output."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else []
    found = [tensor for part in parts for tensor in tensors(part)]
    assert found, type(output)
    return found


def loss(head: Head, features: tuple[Features, ...]) -> Tensor:
    """Return a segmenter's training loss; for another head, a sum that depends on all of its output."""
    if isinstance(head, Segmenter):
        (height, width), batch = features[0].geometry.sizes[0], len(features[0].patches)
        return head.loss(torch.arange(height * width * batch).view(batch, height, width) % head.num_classes, *features)
    return sum(each.square().sum() for each in tensors(head(*features)) if each.is_floating_point())


def multiple(head: Head) -> int:
    return head.needs.grid_multiple * head.spec.stride
