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
from vitbackbone.checkpoints.huggingface.processor import (
    CLIP_EVAL,
    DEIT_EVAL,
    DINOV2_EVAL,
    DINOV3_EVAL,
    SIGLIP_EVAL,
    VIT_EVAL,
    read_preprocess,
    write_preprocess,
)
from vitbackbone.checkpoints.huggingface.shared import ANTIALIASED, PLAIN

__all__ = [
    "ANTIALIASED",
    "CLASSES",
    "CLIP_EVAL",
    "DEIT_EVAL",
    "DINOV2_EVAL",
    "DINOV3_EVAL",
    "MODEL_TYPES",
    "PLAIN",
    "SIGLIP_EVAL",
    "VIT_EVAL",
    "ModelType",
    "read_architecture",
    "read_config",
    "read_labels",
    "read_preprocess",
    "write_config",
    "write_labels",
    "write_preprocess",
    "written_layout",
]
