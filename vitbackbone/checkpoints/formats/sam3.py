"""The layout of SAM 3's image encoder. Each head has the channels of columns first, and then the channels of rows."""

from einops import rearrange
from torch import Tensor

from vitbackbone.checkpoints.formats.changes import KINDS, UNBATCH, join
from vitbackbone.checkpoints.formats.huggingface import layers
from vitbackbone.checkpoints.rules import Change, Rule, Rules, both, rename
from vitbackbone.model import ViTConfig

_LAYER = "layers.{i}"


def _rows_first(config: ViTConfig) -> Change:
    """Join queries, keys and values, with the channels of the rows first in each head of queries and keys."""

    def turned(part: Tensor) -> Tensor:
        heads = part.unflatten(0, (config.num_heads, 2, -1)).flip(1)
        return rearrange(heads, "heads two d ... -> (heads two d) ...")

    def there(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return join(turned(q), turned(k), v)

    def back(whole: Tensor) -> tuple[Tensor, ...]:
        q, k, v = whole.chunk(3)
        return turned(q), turned(k), v

    return Change(there, back)


SAM3: Rules = (
    rename("embeddings.patch_embeddings.projection.weight", "patch_embed.proj.weight"),
    Rule(("embeddings.position_embeddings",), ("pos_embed.table",), UNBATCH),
    *both("layer_norm", "norm_pre"),
    *(
        Rule(
            tuple(f"{_LAYER}.attention.{part}_proj.{kind}" for part in "qkv"),
            (f"blocks.{{i}}.attn.qkv.{kind}",),
            _rows_first,
        )
        for kind in KINDS
    ),
    *layers(
        _LAYER,
        {
            "attention.o_proj": "attn.proj",
            "layer_norm1": "norm1",
            "layer_norm2": "norm2",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        },
    ),
)
