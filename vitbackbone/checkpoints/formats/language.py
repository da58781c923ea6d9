"""The key layouts of vision towers that were made for language models, and of those near them."""

from vitbackbone.checkpoints.formats.aimv2 import AIMV2
from vitbackbone.checkpoints.formats.gemma4 import GEMMA4
from vitbackbone.checkpoints.formats.internvl import INTERN_VIT, INTERNVL
from vitbackbone.checkpoints.formats.kimi import KIMI
from vitbackbone.checkpoints.formats.llama4 import LLAMA4
from vitbackbone.checkpoints.formats.mlcd import MLCD
from vitbackbone.checkpoints.formats.mllama import MLLAMA
from vitbackbone.checkpoints.formats.pixtral import PIXTRAL
from vitbackbone.checkpoints.formats.qwen_vl import QWEN2_5_VL, QWEN2_VL, QWEN3_VL
from vitbackbone.checkpoints.rules import Rules

LANGUAGE: dict[str, Rules] = {
    "hf_internvl": INTERNVL,
    "intern_vit": INTERN_VIT,
    "hf_aimv2": AIMV2,
    "hf_qwen2_vl": QWEN2_VL,
    "hf_qwen2_5_vl": QWEN2_5_VL,
    "hf_qwen3_vl": QWEN3_VL,
    "hf_pixtral": PIXTRAL,
    "hf_mlcd": MLCD,
    "hf_gemma4": GEMMA4,
    "hf_llama4": LLAMA4,
    "hf_kimi": KIMI,
    "hf_mllama": MLLAMA,
}
