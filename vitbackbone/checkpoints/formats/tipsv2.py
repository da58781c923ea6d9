"""The layout of TIPSv2, which is DINOv2's with CLIP's names in the MLP."""

from vitbackbone.checkpoints.formats.authors import DINOV2
from vitbackbone.checkpoints.rules import Rules, both

TIPSV2: Rules = (
    *DINOV2,
    *both("blocks.{i}.mlp.c_fc", "blocks.{i}.mlp.fc1"),
    *both("blocks.{i}.mlp.c_proj", "blocks.{i}.mlp.fc2"),
)
