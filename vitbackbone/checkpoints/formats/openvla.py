"""OpenVLA's checkpoints: the vision encoders among the language model and the projector."""

import re

from torch import Tensor

from vitbackbone.checkpoints.rules import ConversionError, State

OPENVLA_PARTS = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
OPENVLA_REST = ("language_model.", "projector.")


def split_openvla(state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state dicts of DINOv2 and SigLIP, in timm's layout, in a checkpoint of OpenVLA. The language model and the
    projector are left out.

    LayerScale has timm's name again: OpenVLA renamed it, as transformers used to overwrite what is called `gamma`
    (prismatic/extern/hf/modeling_prismatic.py, `ls_apply_patch`).
    Raises `ConversionError` with the keys that belong nowhere, and if one of the two encoders is not there.
    """
    trouble = [f"{key}: no part of OpenVLA" for key in state if not key.startswith(OPENVLA_PARTS + OPENVLA_REST)]
    first, second = (
        {_timm_key(key, part): state[key] for key in state if key.startswith(part)} for part in OPENVLA_PARTS
    )
    trouble += [f"{part}*: missing" for part, found in zip(OPENVLA_PARTS, (first, second), strict=True) if not found]
    if trouble:
        raise ConversionError("the checkpoint is not OpenVLA's:\n  " + "\n  ".join(trouble))
    return first, second


def _timm_key(key: str, part: str) -> str:
    return re.sub(r"^(blocks\.\d+\.ls[12])\.scale_factor$", r"\1.gamma", key.removeprefix(part))
