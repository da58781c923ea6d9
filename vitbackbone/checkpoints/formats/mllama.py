"""The layout of mllama's vision tower. The gates of positions and of blocks are folded into
the weights that they multiply."""

from torch import Tensor

from vitbackbone.checkpoints.formats.changes import qkv
from vitbackbone.checkpoints.rules import Change, Rule, Rules, both, rename
from vitbackbone.model import ViTConfig


def _positions(config: ViTConfig) -> Change:
    """Return the change that computes positions. It takes CLS (D,), positions (n, D), positions of tiles (A, S n D) and
    the gate between these two."""
    assert config.tiles is not None
    tiles = config.tiles.count

    def there(cls: Tensor, table: Tensor, each: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        share = gate.tanh()
        table = (1 - share) * table
        # the first row of the tile tables stands for no image
        return (cls + table[0])[None, None], table[1:], share * each[1:].unflatten(1, (tiles, *table.shape))

    return Change(there)


def _tile_vectors(config: ViTConfig) -> Change:
    """Return the change that multiplies the vectors of tiles (A, S D) by their gate."""
    assert config.tiles is not None
    tiles = config.tiles.count
    return Change(lambda each, gate: (gate.tanh() * each[1:].unflatten(1, (tiles, 1, config.dim)),))


def _gate(config: ViTConfig) -> Change:
    return Change(lambda gate: (gate.tanh().repeat(config.dim),))


def _block(theirs: str, ours: str) -> Rules:
    return (
        *qkv(f"{theirs}.self_attn.", ("q_proj", "k_proj", "v_proj"), f"{ours}.attn"),
        rename(f"{theirs}.self_attn.o_proj.weight", f"{ours}.attn.proj.weight"),
        *both(f"{theirs}.input_layernorm", f"{ours}.norm1"),
        *both(f"{theirs}.post_attention_layernorm", f"{ours}.norm2"),
        *both(f"{theirs}.mlp.fc1", f"{ours}.mlp.fc1"),
        *both(f"{theirs}.mlp.fc2", f"{ours}.mlp.fc2"),
    )


_GATED = "gated_positional_embedding"
MLLAMA: Rules = (
    rename("patch_embedding.weight", "patch_embed.proj.weight"),
    Rule(
        ("class_embedding", f"{_GATED}.embedding", f"{_GATED}.tile_embedding.weight", f"{_GATED}.gate"),
        ("cls_token", "pos_embed.table", "tile_positions"),
        _positions,
    ),
    Rule(
        ("pre_tile_positional_embedding.embedding.weight", "pre_tile_positional_embedding.gate"),
        ("tile_embed",),
        _tile_vectors,
    ),
    Rule(
        ("post_tile_positional_embedding.embedding.weight", "post_tile_positional_embedding.gate"),
        ("tile_embed_across",),
        _tile_vectors,
    ),
    *both("layernorm_pre", "norm_pre"),
    *both("layernorm_post", "norm_within"),
    *_block("transformer.layers.{i}", "blocks.{i}"),
    *_block("global_transformer.layers.{i}", "across.{i}"),
    Rule(("global_transformer.layers.{i}.gate_attn",), ("across.{i}.ls1.gamma",), _gate),
    Rule(("global_transformer.layers.{i}.gate_ffn",), ("across.{i}.ls2.gamma",), _gate),
)
