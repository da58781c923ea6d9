"""OpenVLA's checkpoints, which hold two vision encoders beside the language model and the projector."""

import re

from torch import Tensor

from vitbackbone.checkpoints.faults import Faults
from vitbackbone.checkpoints.rules import State

OPENVLA_PARTS = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
OPENVLA_REST = ("language_model.", "projector.")


def split_openvla(state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the state dicts of DINOv2 and SigLIP, in timm's layout, from a checkpoint of OpenVLA. The language model
    and the projector are left out.

    LayerScale gets timm's name back. OpenVLA renamed it because transformers used to overwrite parameters called
    `gamma` (prismatic/extern/hf/modeling_prismatic.py, `ls_apply_patch`).
    Raises `ConversionError` that names the keys which belong to no part, and an encoder that is missing.
    """
    faults = Faults()
    for key in state:
        if not key.startswith(OPENVLA_PARTS + OPENVLA_REST):
            faults.add(key, "no part of OpenVLA")
    first, second = (
        {_timm_key(key, part): state[key] for key in state if key.startswith(part)} for part in OPENVLA_PARTS
    )
    for part, found in zip(OPENVLA_PARTS, (first, second), strict=True):
        if not found:
            faults.add(f"{part}*", "missing")
    faults.raise_any("the checkpoint is not OpenVLA's")
    return first, second


def _timm_key(key: str, part: str) -> str:
    return re.sub(r"^(blocks\.\d+\.ls[12])\.scale_factor$", r"\1.gamma", key.removeprefix(part))
