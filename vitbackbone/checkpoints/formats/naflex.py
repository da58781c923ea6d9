"""timm's layout of NaFlexVit (timm/models/naflexvit.py): a linear layer on pixels, channels last; positions (h, w)."""

from einops import rearrange
from torch import Tensor

from vitbackbone.checkpoints.formats.siglip2 import channels_last
from vitbackbone.checkpoints.formats.timm import ATTENTION_POOL, BLOCK, HEAD, LAYER_SCALE, MLP, NORM, QKV
from vitbackbone.checkpoints.rules import Change, Rule, Rules, rename


def _flat(table: Tensor) -> tuple[Tensor]:
    return (rearrange(table, "1 h w d -> (h w) d"),)


NAFLEX: dict[str, Rules] = {
    "timm_naflex": (
        Rule(("embeds.proj.weight",), ("patch_embed.proj.weight",), channels_last),
        rename("embeds.proj.bias", "patch_embed.proj.bias"),
        Rule(("embeds.pos_embed",), ("pos_embed.table",), Change(_flat)),
        rename("embeds.cls_token", "cls_token"),
        rename("embeds.reg_token", "reg_token"),
        *BLOCK,
        *QKV,
        *LAYER_SCALE,
        *MLP,
        *NORM,
        *ATTENTION_POOL,
        *HEAD,
    ),
}
