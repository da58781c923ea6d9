"""The layout of TerraMind's encoder (terratorch, models/backbones/terramind/model: terramind_vit.py, tm_utils.py).

The file has a patch projection for each kind of image, beside the encoder and the decoder that all of them share. A
format reads the projection of one kind. The vector of this kind is added to all patches, so it is the bias.
"""

from vitbackbone.checkpoints.formats.changes import UNBATCH, gated
from vitbackbone.checkpoints.formats.siglip2 import channels_last
from vitbackbone.checkpoints.rules import Change, Rule, Rules, both, drop

# the projection of each kind of images, by our name of the kind
PROJECTIONS: dict[str, str] = {
    "sentinel_2_l2a": "untok_sen2l2a@224",
    "sentinel_2_l1c": "untok_sen2l1c@224",
    "sentinel_2_rgb": "untok_sen2rgb@224",
    "sentinel_1_grd": "untok_sen1grd@224",
    "sentinel_1_rtc": "untok_sen1rtc@224",
    "dem": "untok_dem@224",
}
# the embeddings of inputs that are tokens
_TOKENS = (
    *(f"tok_{name}@224" for name in ("sen2l2a", "sen1grd", "sen1rtc", "lulc", "dem", "ndvi")),
    *("caption", "coords"),
)
_ENCODER: Rules = (
    *(rule for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
      for rule in both(f"encoder.{{i}}.{part}", f"blocks.{{i}}.{part}")),
    *gated("encoder.{i}.mlp.fc1", "encoder.{i}.mlp.fc3", "blocks.{i}.mlp.w12"),
    *both("encoder.{i}.mlp.fc2", "blocks.{i}.mlp.w3"),
    *both("encoder_norm", "norm"),
)  # fmt: skip
_BIAS = Change(lambda vector: (vector[0, 0],), lambda bias: (bias[None, None],))


def _of(projection: str) -> Rules:
    """Return the layout that reads one projection, and drops the others."""
    own = f"encoder_embeddings.{projection}"
    others = (name for name in (*PROJECTIONS.values(), *_TOKENS) if name != projection)
    return (
        Rule((f"{own}.proj.weight",), ("patch_embed.proj.weight",), channels_last),
        Rule((f"{own}.mod_emb",), ("patch_embed.proj.bias",), _BIAS),
        Rule((f"{own}.pos_emb",), ("pos_embed.table",), UNBATCH),
        *(drop(f"encoder_embeddings.{name}.{{rest}}") for name in others),
        *_ENCODER,
    )


TERRAMIND: dict[str, Rules] = {f"terramind_{name}": _of(key) for name, key in PROJECTIONS.items()}
