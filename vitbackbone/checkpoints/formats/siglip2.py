"""The layout of SigLIP 2 NaFlex, which is SigLIP's but for the patches: a linear layer on pixels, channels last."""

import math

from einops import rearrange
from torch import Tensor

from vitbackbone.checkpoints.formats.huggingface import SIGLIP
from vitbackbone.checkpoints.rules import Change, Rule, Rules

CHANNELS = 3


def _to_convolution(weight: Tensor) -> tuple[Tensor]:
    side = math.isqrt(weight.shape[1] // CHANNELS)
    return (rearrange(weight, "D (p q c) -> D c p q", c=CHANNELS, p=side),)


# A linear layer on patches (p, p, c) to the kernel of a convolution
CHANNELS_LAST = Change(_to_convolution, lambda kernel: (rearrange(kernel, "D c p q -> D (p q c)"),))

_PATCHES = "embeddings.patch_embedding.weight"
SIGLIP2: Rules = (
    *(rule for rule in SIGLIP if rule.sources != (_PATCHES,)),
    Rule((_PATCHES,), ("patch_embed.proj.weight",), CHANNELS_LAST),
)
