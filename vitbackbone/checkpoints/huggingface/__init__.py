"""Reading and writing `config.json` and `preprocessor_config.json` of Hugging Face checkpoints."""

from vitbackbone.checkpoints.huggingface.config import (
    CLASSES,
    MODEL_TYPES,
    ModelType,
    read_architecture,
    read_config,
    read_labels,
    write_config,
    write_labels,
    written_layout,
)
from vitbackbone.checkpoints.huggingface.processor import read_preprocess, write_preprocess
from vitbackbone.checkpoints.huggingface.processor_classes import (
    CLIP_EVAL,
    DEIT_EVAL,
    DINOV2_EVAL,
    DINOV3_EVAL,
    SIGLIP_EVAL,
    VIT_EVAL,
)
from vitbackbone.checkpoints.huggingface.records import LARGEST, Depth, Epsilon, Heads, Width
from vitbackbone.checkpoints.huggingface.shared import ANTIALIASED, PLAIN
from vitbackbone.checkpoints.huggingface.text import (
    CLEANING,
    LEFT,
    LOWERED,
    PAD_TOKENS,
    TEXT_TYPES,
    Length,
    Vocabulary,
    read_temperature,
    read_text,
    text_type,
)

__all__ = [
    "ANTIALIASED",
    "CLASSES",
    "CLEANING",
    "CLIP_EVAL",
    "DEIT_EVAL",
    "DINOV2_EVAL",
    "DINOV3_EVAL",
    "LARGEST",
    "LEFT",
    "LOWERED",
    "MODEL_TYPES",
    "PAD_TOKENS",
    "PLAIN",
    "SIGLIP_EVAL",
    "TEXT_TYPES",
    "VIT_EVAL",
    "Depth",
    "Epsilon",
    "Heads",
    "Length",
    "ModelType",
    "Vocabulary",
    "Width",
    "read_architecture",
    "read_config",
    "read_labels",
    "read_preprocess",
    "read_temperature",
    "read_text",
    "text_type",
    "write_config",
    "write_labels",
    "write_preprocess",
    "written_layout",
]
