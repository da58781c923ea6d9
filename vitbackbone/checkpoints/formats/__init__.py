"""The checkpoint formats as tables: which key of a file becomes which parameter of `ViT`, or of timm's Swin behind
`TimmBackbone`.

The parameters of a head come out under `head.`, `head_dist.` and `head_concat.`, by what they read. They are not part
of a backbone, and `load_checkpoint` returns them beside it.
"""

from vitbackbone.checkpoints.formats.authors import AUTHORS
from vitbackbone.checkpoints.formats.huggingface import CLASSES
from vitbackbone.checkpoints.formats.huggingface import TOWERS as PLAIN
from vitbackbone.checkpoints.formats.swin import SWIN
from vitbackbone.checkpoints.formats.timm import TIMM
from vitbackbone.checkpoints.rules import Rules

# The layouts of transformers' towers: keys are relative to the tower, and `towers` finds its prefix
TOWERS: dict[str, Rules] = {**PLAIN, **SWIN}
FORMATS: dict[str, Rules] = {**AUTHORS, **TIMM, **TOWERS, **CLASSES}

__all__ = ["CLASSES", "FORMATS", "TOWERS"]
