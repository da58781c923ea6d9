"""The layout of C-RADIO (NVlabs/RADIO, radio/radio_model.py and vit_patch_generator.py).

The network normalises its input by a mean and a std of its own. They are folded into the patch projection, so that
images have values from 0 to 1, as upstream.
"""

import math

import torch
from einops import rearrange
from torch import Tensor

from vitbackbone.checkpoints.formats.changes import UNBATCH
from vitbackbone.checkpoints.formats.timm import BLOCK, LAYER_SCALE, MLP, QKV
from vitbackbone.checkpoints.rules import Change, Rule, Rules, both, drop, inside, rename


def _normalised(weight: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Return the kernel and bias of a projection of images that are not normalised yet."""
    channels = len(mean.flatten())
    side = math.isqrt(weight.shape[1] // channels)
    kernel = rearrange(weight, "D (c p q) -> D c p q", c=channels, p=side)
    scaled = kernel.double() / std.double().view(1, -1, 1, 1)
    return scaled.float(), -(scaled * mean.double().view(1, -1, 1, 1)).sum(dim=(1, 2, 3)).float()


def _first_and_rest(tokens: Tensor) -> tuple[Tensor, Tensor]:
    return tokens[None, :1], tokens[None, 1:]


# (P, D) to the first token (1, 1, D) and the others (1, P - 1, D)
FIRST_AND_REST = Change(_first_and_rest, lambda first, rest: (torch.cat([first, rest], dim=1)[0],))

_GENERATOR = "model.patch_generator"
# Relative to `radio_model.`
RADIO: Rules = (
    Rule(
        (f"{_GENERATOR}.embedder.weight", "input_conditioner.norm_mean", "input_conditioner.norm_std"),
        ("patch_embed.proj.weight", "patch_embed.proj.bias"),
        Change(_normalised),
    ),
    Rule((f"{_GENERATOR}.pos_embed",), ("pos_embed.table",), UNBATCH),
    Rule((f"{_GENERATOR}.cls_token.token",), ("cls_token", "reg_token"), FIRST_AND_REST),
    *inside("model.", (*BLOCK, *QKV, *MLP, *LAYER_SCALE)),
    *(  # transformers' names, and the names in the authors' files
        rename(f"model.blocks.{{i}}.{theirs.format(n)}", f"blocks.{{i}}.ls{n}.gamma")
        for n in (1, 2)
        for theirs in ("layer_scale{}.lambda1", "ls{}.grandma")
    ),
    *both("model.norm", "norm"),
    drop("summary_idxs"),  # `shapes.settle` reads them
    drop("adaptors.{rest}"),  # `checkpoints.radio_adaptors` reads one of them
    drop(f"{_GENERATOR}.video_embedder.weight"),
)
