"""The layouts of image towers in open_clip's files: its own Vision Transformer, or a network of timm as `trunk`.

Keys are relative to the tower. open_clip's `head` lies beside the trunk.
"""

from collections.abc import Mapping

from vitbackbone.checkpoints.formats.changes import FOLD_FLAT, TRANSPOSE
from vitbackbone.checkpoints.rules import HEADS, Rule, Rules, beside, both, rename

_RESBLOCK = "transformer.resblocks.{i}"
OPEN_CLIP: Rules = (
    rename("conv1.weight", "patch_embed.proj.weight"),
    Rule(("class_embedding", "positional_embedding"), ("cls_token", "pos_embed.table"), FOLD_FLAT),
    *both("ln_pre", "norm_pre"),
    *both(f"{_RESBLOCK}.ln_1", "blocks.{i}.norm1"),
    rename(f"{_RESBLOCK}.attn.in_proj_weight", "blocks.{i}.attn.qkv.weight"),
    rename(f"{_RESBLOCK}.attn.in_proj_bias", "blocks.{i}.attn.qkv.bias"),
    *both(f"{_RESBLOCK}.attn.out_proj", "blocks.{i}.attn.proj"),
    rename(f"{_RESBLOCK}.ls_1.gamma", "blocks.{i}.ls1.gamma"),
    *both(f"{_RESBLOCK}.ln_2", "blocks.{i}.norm2"),
    *both(f"{_RESBLOCK}.mlp.c_fc", "blocks.{i}.mlp.fc1"),
    *both(f"{_RESBLOCK}.mlp.c_proj", "blocks.{i}.mlp.fc2"),
    rename(f"{_RESBLOCK}.ls_2.gamma", "blocks.{i}.ls2.gamma"),
    *both("ln_post", "norm"),
    *both("ln_post", "fc_norm"),  # where it follows the mean of the patches
    Rule(("proj",), ("projection.weight",), TRANSPOSE),
)


def trunks(layouts: Mapping[str, Rules]) -> dict[str, Rules]:
    """Return timm's layouts with the projection of an image-text model instead of a classifier.

    The projection is timm's own head, or open_clip's beside the trunk.
    """
    return {f"open_clip {name}": _projected(rules) for name, rules in layouts.items()}


def _projected(rules: Rules) -> Rules:
    kept = tuple(rule for rule in rules if not any(target.startswith(HEADS) for target in rule.targets))
    has = any("head.weight" in rule.sources for rule in kept)
    return (*kept, *(() if has else both("head", "projection")), *beside(both("head.proj", "projection")))
