"""The layout of Sapiens 2. transformers writes the authors' names.

Shared keys and values are copied for each head, and LayerScale joins the projection.
"""

from torch import Tensor

from vitbackbone.checkpoints.formats.changes import join
from vitbackbone.checkpoints.rules import Change, Rule, Rules, both, rename
from vitbackbone.model import ViTConfig

_BLOCK = "blocks.{i}"


def _for_each_head(config: ViTConfig, part: Tensor) -> Tensor:
    """Repeat the rows of the heads of keys or values, (g d, ...), for all heads that share them."""
    heads = part.unflatten(0, (-1, config.head_width))
    return heads.repeat_interleave(config.num_heads // len(heads), dim=0).flatten(0, 1)


def _shared(config: ViTConfig) -> Change:
    def there(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return join(q, _for_each_head(config, k), _for_each_head(config, v))

    return Change(there)


def _shared_value(config: ViTConfig) -> Change:
    return Change(lambda v: (_for_each_head(config, v),))


_SCALE = f"{_BLOCK}.attn.gamma.weight"
SAPIENS2: Rules = (
    *both("patch_embed.projection", "patch_embed.proj"),
    rename("cls_token", "cls_token"),
    rename("storage_tokens", "reg_token"),
    *(
        Rule(tuple(f"{_BLOCK}.attn.w{part}.{kind}" for part in "qkv"), (f"{_BLOCK}.attn.qkv.{kind}",), _shared)
        for kind in ("weight", "bias")
    ),
    rename(f"{_BLOCK}.attn.wq.bias", f"{_BLOCK}.attn.q_bias"),
    Rule((f"{_BLOCK}.attn.wv.bias",), (f"{_BLOCK}.attn.v_bias",), _shared_value),
    rename(f"{_BLOCK}.attn.q_norm.weight", f"{_BLOCK}.attn.q_norm.weight"),
    rename(f"{_BLOCK}.attn.k_norm.weight", f"{_BLOCK}.attn.k_norm.weight"),
    Rule(
        (f"{_BLOCK}.attn.proj.weight", f"{_BLOCK}.attn.proj.bias", _SCALE),
        (f"{_BLOCK}.attn.proj.weight", f"{_BLOCK}.attn.proj.bias"),
        Change(lambda weight, bias, scale: (scale[:, None] * weight, scale * bias)),
    ),
    Rule(
        (f"{_BLOCK}.attn.proj.weight", _SCALE),
        (f"{_BLOCK}.attn.proj.weight",),
        Change(lambda weight, scale: (scale[:, None] * weight,)),
    ),
    rename(f"{_BLOCK}.ln1.weight", f"{_BLOCK}.norm1.weight"),
    rename(f"{_BLOCK}.ln2.weight", f"{_BLOCK}.norm2.weight"),
    *both(f"{_BLOCK}.ffn.w12", f"{_BLOCK}.mlp.w12"),
    *both(f"{_BLOCK}.ffn.w3", f"{_BLOCK}.mlp.w3"),
    *both(f"{_BLOCK}.ffn.w12", f"{_BLOCK}.mlp.fc1"),
    *both(f"{_BLOCK}.ffn.w3", f"{_BLOCK}.mlp.fc2"),
    rename("ln1.weight", "norm.weight"),
)
