"""The checkpoint formats as tables: which key of a file becomes which parameter of `ViT`, or of timm's Swin behind
`TimmBackbone`.

The parameters of a head come out under `head.`, `head_dist.` and `head_concat.`, by what they read. They are not part
of a backbone, and `load_checkpoint` returns them beside it.
"""

from vitbackbone.checkpoints.formats.authors import AUTHORS
from vitbackbone.checkpoints.formats.huggingface import HUGGING_FACE
from vitbackbone.checkpoints.formats.swin import SWIN
from vitbackbone.checkpoints.formats.timm import TIMM
from vitbackbone.checkpoints.rules import Rules

FORMATS: dict[str, Rules] = {**AUTHORS, **TIMM, **HUGGING_FACE, **SWIN}

__all__ = ["FORMATS"]
