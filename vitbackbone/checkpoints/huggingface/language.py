"""The vision towers that were made for language models, and those near them: readers and defaults by `model_type`."""

from collections.abc import Callable

from vitbackbone.checkpoints.huggingface.aimv2 import AIMV2_EVAL, read_aimv2
from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.huggingface.gemma4 import GEMMA4_EVAL, read_gemma4
from vitbackbone.checkpoints.huggingface.internvl import INTERNVL_EVAL, read_intern_vit, read_internvl
from vitbackbone.checkpoints.huggingface.kimi import KIMI_EVAL, read_kimi
from vitbackbone.checkpoints.huggingface.llama4 import LLAMA4_EVAL, read_llama4
from vitbackbone.checkpoints.huggingface.mlcd import read_mlcd
from vitbackbone.checkpoints.huggingface.mllama import MLLAMA_EVAL, read_mllama
from vitbackbone.checkpoints.huggingface.pixtral import PIXTRAL_EVAL, read_pixtral
from vitbackbone.checkpoints.huggingface.processor_classes import CLIP_EVAL
from vitbackbone.checkpoints.huggingface.qwen_vl import (
    QWEN2_VL_EVAL,
    QWEN3_VL_EVAL,
    read_qwen2_5_vl,
    read_qwen2_vl,
    read_qwen3_vl,
)
from vitbackbone.images import Preprocess
from vitbackbone.model import ViTConfig

#    model types: reader, key layout, preprocessing, and whether inputs have the network's own size
Row = tuple[Callable[[Json], ViTConfig], str, Preprocess, bool]
LANGUAGE: dict[str, Row] = {
    "internvl_vision": (read_internvl, "hf_internvl", INTERNVL_EVAL, True),
    "intern_vit_6b": (read_intern_vit, "intern_vit", INTERNVL_EVAL, True),
    "aimv2": (read_aimv2, "hf_aimv2", AIMV2_EVAL, True),
    "aimv2_vision_model": (read_aimv2, "hf_aimv2", AIMV2_EVAL, True),
    "qwen2_vl": (read_qwen2_vl, "hf_qwen2_vl", QWEN2_VL_EVAL, False),
    "qwen2_vl_vision": (read_qwen2_vl, "hf_qwen2_vl", QWEN2_VL_EVAL, False),
    "qwen2_5_vl": (read_qwen2_5_vl, "hf_qwen2_5_vl", QWEN2_VL_EVAL, False),
    "qwen2_5_vl_vision": (read_qwen2_5_vl, "hf_qwen2_5_vl", QWEN2_VL_EVAL, False),
    "qwen3_vl": (read_qwen3_vl, "hf_qwen3_vl", QWEN3_VL_EVAL, True),
    "qwen3_vl_vision": (read_qwen3_vl, "hf_qwen3_vl", QWEN3_VL_EVAL, True),
    "pixtral": (read_pixtral, "hf_pixtral", PIXTRAL_EVAL, True),
    "mlcd_vision_model": (read_mlcd, "hf_mlcd", CLIP_EVAL, True),
    "gemma4_vision": (read_gemma4, "hf_gemma4", GEMMA4_EVAL, False),
    "llama4_vision_model": (read_llama4, "hf_llama4", LLAMA4_EVAL, True),
    "mllama_vision_model": (read_mllama, "hf_mllama", MLLAMA_EVAL, True),
    "kimi_k25_vision": (read_kimi, "hf_kimi", KIMI_EVAL, False),
    "moonvit": (read_kimi, "hf_kimi", KIMI_EVAL, False),
}
