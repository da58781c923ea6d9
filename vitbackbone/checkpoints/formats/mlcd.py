"""The layout of MLCD: CLIP's without a position table."""

from vitbackbone.checkpoints.formats.huggingface import CLIP
from vitbackbone.checkpoints.rules import Change, Rule, Rules

_ONE = Change(lambda token: (token[None, None],), lambda token: (token[0, 0],))
_ROW = Change(lambda row: (row[0],), lambda angles: (angles[None],))

MLCD: Rules = (
    *(rule for rule in CLIP if "embeddings.class_embedding" not in rule.sources),
    Rule(("embeddings.class_embedding",), ("cls_token",), _ONE),
    Rule(("class_pos_emb",), ("blocks.{i}.attn.cls_angles",), _ROW),
)
