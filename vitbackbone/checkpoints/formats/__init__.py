"""The checkpoint formats as tables: which key of a file becomes which parameter of `ViT`, or of timm's Swin behind
`TimmBackbone`.

The parameters of a head come out under `head.`, `head_dist.` and `head_concat.`, by what they read. They are not part
of a backbone, and `load_checkpoint` returns them beside it.
"""

from vitbackbone.checkpoints.formats.authors import AUTHORS
from vitbackbone.checkpoints.formats.clay import CLAY
from vitbackbone.checkpoints.formats.depth import DA3
from vitbackbone.checkpoints.formats.eva import PERCEPTION, TIMM_EVA
from vitbackbone.checkpoints.formats.huggingface import CLASSES
from vitbackbone.checkpoints.formats.huggingface import TOWERS as PLAIN
from vitbackbone.checkpoints.formats.language import LANGUAGE
from vitbackbone.checkpoints.formats.levels import LEVELS
from vitbackbone.checkpoints.formats.naflex import NAFLEX
from vitbackbone.checkpoints.formats.open_clip import COCA, OPEN_CLIP, trunks
from vitbackbone.checkpoints.formats.pixio import PIXIO
from vitbackbone.checkpoints.formats.prefix import PREFIX
from vitbackbone.checkpoints.formats.radio import RADIO
from vitbackbone.checkpoints.formats.sam3 import SAM3
from vitbackbone.checkpoints.formats.sapiens2 import SAPIENS2
from vitbackbone.checkpoints.formats.satellites import SATELLITES
from vitbackbone.checkpoints.formats.siglino import SIGLINO
from vitbackbone.checkpoints.formats.siglip2 import SIGLIP2
from vitbackbone.checkpoints.formats.swin import SWIN
from vitbackbone.checkpoints.formats.terramind import TERRAMIND
from vitbackbone.checkpoints.formats.timm import TIMM
from vitbackbone.checkpoints.formats.tipsv2 import TIPSV2
from vitbackbone.checkpoints.formats.vitdet import VITDET
from vitbackbone.checkpoints.formats.vitpose import VITPOSE
from vitbackbone.checkpoints.formats.vjepa import VJEPA
from vitbackbone.checkpoints.formats.yolos import YOLOS
from vitbackbone.checkpoints.rules import Rules

# The layouts of transformers' towers: keys are relative to the tower, and `towers` finds its prefix
TOWERS: dict[str, Rules] = {
    **PLAIN,
    **SWIN,
    **LANGUAGE,
    **LEVELS,
    "open_clip_vit": OPEN_CLIP,
    "open_clip_coca": COCA,
    **trunks({**TIMM, **PREFIX, **PERCEPTION, **TIMM_EVA}),
    "hf_pixio": PIXIO,
    "hf_radio": RADIO,
    "hf_sam3": SAM3,
    "hf_sapiens2": SAPIENS2,
    "hf_siglip2": SIGLIP2,
    "hf_tipsv2": TIPSV2,
    "hf_vitdet": VITDET,
    "hf_vitpose": VITPOSE,
    "hf_yolos": YOLOS,
    **VJEPA,
}
FORMATS: dict[str, Rules] = {
    **AUTHORS,
    **SATELLITES,
    **TERRAMIND,
    "clay": CLAY,
    "da3": DA3,
    "siglino": SIGLINO,
    **PERCEPTION,
    **TIMM,
    **TIMM_EVA,
    **NAFLEX,
    **PREFIX,
    **TOWERS,
    **CLASSES,
}

__all__ = ["CLASSES", "FORMATS", "TOWERS"]
