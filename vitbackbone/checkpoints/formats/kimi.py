"""The layouts of MoonViT: transformers' files of the tower, and Kimi's own files, whose layout whole models have
too."""

from vitbackbone.checkpoints.formats.rotary import alternating_halves, alternating_neighbours, packed, qkv_in_order
from vitbackbone.checkpoints.rules import Change, Rule, Rules, beside, both

_FLAT = Change(lambda table: (table.flatten(0, 1),))
_OURS = "blocks.{i}"


def _own(block: str) -> Rules:
    """Return the rules for a block of Kimi's own files."""
    return (
        *(
            Rule((f"{block}.wqkv.{kind}",), (f"{_OURS}.attn.qkv.{kind}",), packed(alternating_neighbours))
            for kind in ("weight", "bias")
        ),
        *both(f"{block}.wo", f"{_OURS}.attn.proj"),
        *both(f"{block}.norm0", f"{_OURS}.norm1"),
        *both(f"{block}.norm1", f"{_OURS}.norm2"),
        *both(f"{block}.mlp.fc0", f"{_OURS}.mlp.fc1"),
        *both(f"{block}.mlp.fc1", f"{_OURS}.mlp.fc2"),
    )


KIMI: Rules = (
    *both("patch_embed.proj", "patch_embed.proj"),
    Rule(("patch_embed.pos_emb.position_embeddings",), ("pos_embed.table",), _FLAT),
    *qkv_in_order("layers.{i}.attn.", ("q_proj", "k_proj", "v_proj"), f"{_OURS}.attn", alternating_halves),
    *both("layers.{i}.attn.proj", f"{_OURS}.attn.proj"),
    *both("layers.{i}.norm1", f"{_OURS}.norm1"),
    *both("layers.{i}.norm2", f"{_OURS}.norm2"),
    *both("layers.{i}.mlp.fc1", f"{_OURS}.mlp.fc1"),
    *both("layers.{i}.mlp.fc2", f"{_OURS}.mlp.fc2"),
    *both("final_layernorm", "norm"),
    Rule(("patch_embed.pos_emb.weight",), ("pos_embed.table",), _FLAT),
    *_own("encoder.blocks.{i}"),
    *both("encoder.final_layernorm", "norm"),
    *_own("blocks.{i}"),  # transformers writes the patch embedding, but not its positions, under `encoder`
    *beside([Rule(("patch_embed.pos_emb.weight",), ("pos_embed.table",), _FLAT)]),
)
