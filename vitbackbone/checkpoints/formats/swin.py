"""The key layouts of Hugging Face's Swin and Swin V2, as tables, to the parameters of a `TimmBackbone`.

Sources: the `save_pretrained` layout of transformers (v5 still writes the v4 names), timm/models/swin_transformer.py
and swin_transformer_v2.py. Downsampling ends a stage in transformers, and starts the next one in timm.
"""

from vitbackbone.checkpoints.formats.changes import FIRST, stack
from vitbackbone.checkpoints.rules import Rule, Rules, beside, both, drop, rename

STAGES = 4  # in every published Swin; the tables also serve fewer


def _stage(s: int) -> Rules:
    """Return the rules that Swin and Swin V2 share. `{i}` is the block within the stage."""
    theirs, ours = f"encoder.layers.{s}.blocks.{{i}}", f"model.layers.{s}.blocks.{{i}}"
    qkv = tuple(f"{theirs}.attention.self.{part}.weight" for part in ("query", "key", "value"))
    return (
        *both(f"{theirs}.layernorm_before", f"{ours}.norm1"),
        Rule(qkv, (f"{ours}.attn.qkv.weight",), stack(3)),
        *both(f"{theirs}.attention.output.dense", f"{ours}.attn.proj"),
        *both(f"{theirs}.layernorm_after", f"{ours}.norm2"),
        *both(f"{theirs}.intermediate.dense", f"{ours}.mlp.fc1"),
        *both(f"{theirs}.output.dense", f"{ours}.mlp.fc2"),
        *both(f"encoder.layers.{s}.downsample.norm", f"model.layers.{s + 1}.downsample.norm"),
        rename(f"encoder.layers.{s}.downsample.reduction.weight", f"model.layers.{s + 1}.downsample.reduction.weight"),
        drop(f"{theirs}.attention.self.relative_position_index"),  # follows from the window; older files hold it
    )


def _swin_stage(s: int) -> Rules:
    theirs, ours = f"encoder.layers.{s}.blocks.{{i}}.attention.self", f"model.layers.{s}.blocks.{{i}}.attn"
    biases = tuple(f"{theirs}.{part}.bias" for part in ("query", "key", "value"))
    return (
        *_stage(s),
        Rule(biases, (f"{ours}.qkv.bias",), stack(3)),
        rename(f"{theirs}.relative_position_bias_table", f"{ours}.relative_position_bias_table"),
    )


def _swinv2_stage(s: int) -> Rules:
    theirs, ours = f"encoder.layers.{s}.blocks.{{i}}.attention.self", f"model.layers.{s}.blocks.{{i}}.attn"
    return (
        *_stage(s),
        rename(f"{theirs}.query.bias", f"{ours}.q_bias"),  # k has none
        rename(f"{theirs}.value.bias", f"{ours}.v_bias"),
        rename(f"{theirs}.logit_scale", f"{ours}.logit_scale"),
        *both(f"{theirs}.continuous_position_bias_mlp.0", f"{ours}.cpb_mlp.0"),
        rename(f"{theirs}.continuous_position_bias_mlp.2.weight", f"{ours}.cpb_mlp.2.weight"),
        drop(f"{theirs}.relative_coords_table"),  # follows from the window; older files hold it
    )


_ENDS: Rules = (
    *both("embeddings.patch_embeddings.projection", "model.patch_embed.proj"),
    *both("embeddings.norm", "model.patch_embed.norm"),
    drop("embeddings.mask_token"),  # replaces masked patches in pretraining only
    *both("layernorm", "model.norm"),
)

# SwinBackbone has a norm for each stage that it returns, and one that only serves if the last stage has none
_LAST = f"hidden_states_norms.stage{STAGES}"
_BACKBONE: Rules = (
    *both("swin.layernorm", "model.norm"),
    *both(_LAST, "model.norm"),
    *(
        Rule((f"{_LAST}.{kind}", f"swin.layernorm.{kind}"), (f"model.norm.{kind}",), FIRST)
        for kind in ("weight", "bias")
    ),
    *(drop(f"hidden_states_norms.stage{s}.{kind}") for s in range(1, STAGES) for kind in ("weight", "bias")),
)
_SWIN: Rules = (*_ENDS, *_BACKBONE, *(rule for s in range(STAGES) for rule in _swin_stage(s)))
_SWINV2: Rules = (*_ENDS, *(rule for s in range(STAGES) for rule in _swinv2_stage(s)))


_HEAD = beside(both("classifier", "head"))
SWIN: dict[str, Rules] = {"hf_swin": (*_SWIN, *_HEAD), "hf_swinv2": (*_SWINV2, *_HEAD)}
