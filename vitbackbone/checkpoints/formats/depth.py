"""The layout of Depth Anything 3's encoder, a DINOv2 for several views (ByteDance-Seed/Depth-Anything-3,
model/dinov2/vision_transformer.py)."""

from torch import Tensor

from vitbackbone.checkpoints.formats.authors import DINOV2
from vitbackbone.checkpoints.formats.rotary import halves_by_row, of_a_head, packed
from vitbackbone.checkpoints.rules import Change, Rule, Rules


def _reference(tokens: Tensor) -> tuple[Tensor]:
    """Return the token of the first view; all other views share the second token."""
    return (tokens[:, :1],)


_QKV = tuple(f"blocks.{{i}}.attn.qkv.{kind}" for kind in ("weight", "bias"))
DA3: Rules = (
    *(rule for rule in DINOV2 if not {*_QKV} & {*rule.sources}),
    *(Rule((name,), (name,), packed(halves_by_row)) for name in _QKV),
    *(
        Rule((name,), (name,), of_a_head(halves_by_row))
        for name in (f"blocks.{{i}}.attn.{norm}.{kind}" for norm in ("q_norm", "k_norm") for kind in ("weight", "bias"))
    ),
    Rule(("camera_token",), ("blocks.{i}.camera",), Change(_reference)),
)
