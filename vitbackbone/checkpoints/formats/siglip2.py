"""The layout of SigLIP 2 NaFlex, which is SigLIP's but for the patches: a linear layer on pixels, channels last."""

import math

from einops import rearrange
from torch import Tensor

from vitbackbone.checkpoints.formats.huggingface import SIGLIP
from vitbackbone.checkpoints.rules import Change, Rule, Rules
from vitbackbone.model import ViTConfig


def channels_last(config: ViTConfig) -> Change:
    """Return the change of a linear layer on patches (p, p, c) to the kernel of a convolution."""
    c = config.channels

    def there(weight: Tensor) -> tuple[Tensor]:
        side = math.isqrt(weight.shape[1] // c)
        return (rearrange(weight, "D (p q c) -> D c p q", c=c, p=side),)

    return Change(there, lambda kernel: (rearrange(kernel, "D c p q -> D (p q c)"),))


_PATCHES = "embeddings.patch_embedding.weight"
SIGLIP2: Rules = (
    *(rule for rule in SIGLIP if rule.sources != (_PATCHES,)),
    Rule((_PATCHES,), ("patch_embed.proj.weight",), channels_last),
)
