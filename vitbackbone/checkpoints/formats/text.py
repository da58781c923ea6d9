"""The key layouts of text towers, as tables to the parameters of `TextTransformer`.

Each table is relative to the tower. A whole model has it under a prefix, beside an image tower, whose keys are
dropped.
"""

from torch import Tensor

from vitbackbone.checkpoints.formats.changes import TRANSPOSE, gated, qkv
from vitbackbone.checkpoints.rules import Change, Rule, Rules, both, drop, inside, read_only, rename

# The learned number of the logits is a vector of one number in some layouts
SCALAR = Change(lambda number: (number.reshape(()),), lambda number: (number.reshape(1),))
_LOGITS: Rules = tuple(Rule((name,), (name,), SCALAR) for name in ("logit_scale", "logit_bias"))

# ---- transformers -------------------------------------------------------------------------------------------------

_LAYER = "encoder.layers.{i}"
_PARTS = {"self_attn.out_proj": "attn.proj", "layer_norm1": "norm1", "layer_norm2": "norm2"}
CLIP: Rules = (
    rename("embeddings.token_embedding.weight", "token_embed.weight"),
    rename("embeddings.position_embedding.weight", "pos_embed"),
    drop("embeddings.position_ids"),
    *qkv(f"{_LAYER}.self_attn.", ("q_proj", "k_proj", "v_proj"), "blocks.{i}.attn"),
    *(
        rule
        for theirs, ours in {**_PARTS, "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}.items()
        for rule in both(f"{_LAYER}.{theirs}", f"blocks.{{i}}.{ours}")
    ),
    *both("final_layer_norm", "norm"),
)
SIGLIP: Rules = (*CLIP, *both("head", "projection"))
_PROJECTION: Rules = (rename("text_projection.weight", "projection.weight"),)
_PROJECTED: Rules = (*inside("text_model.", CLIP), *_PROJECTION)
_IMAGES: Rules = (drop("vision_model.{rest}"), drop("visual_projection.weight"))
_WHOLE_CLIP: Rules = (*_PROJECTED, *_LOGITS, *_IMAGES)
_WHOLE_SIGLIP: Rules = (*inside("text_model.", SIGLIP), *_LOGITS, drop("vision_model.{rest}"))


def _alone(rules: Rules) -> Rules:
    """Return the rules of a tower that was saved alone. Version 4 of transformers had it one level down."""
    return (*rules, *read_only(inside("text_model.", rules)))


AIMV2: Rules = (
    *CLIP[:3],
    *qkv(f"{_LAYER}.attention.", ("q_proj", "k_proj", "v_proj"), "blocks.{i}.attn"),
    *both(f"{_LAYER}.attention.out_proj", "blocks.{i}.attn.proj"),
    rename(f"{_LAYER}.rms_norm1.weight", "blocks.{i}.norm1.weight"),
    rename(f"{_LAYER}.rms_norm2.weight", "blocks.{i}.norm2.weight"),
    *gated(f"{_LAYER}.ffn.gate_proj", f"{_LAYER}.ffn.up_proj", "blocks.{i}.mlp.w12"),
    *both(f"{_LAYER}.ffn.down_proj", "blocks.{i}.mlp.w3"),
    rename("rms_norm.weight", "norm.weight"),
)


def _bert(first: int) -> Rules:
    """Return the rules of BERT (Devlin et al. 2019). `first`: the position of a text's first token in the table."""

    def there(positions: Tensor, types: Tensor) -> tuple[Tensor]:
        return (positions[first:] + types[0],)  # all tokens of a text have the first type

    layer = "encoder.layer.{i}"
    names = {
        **{"attention.output.dense": "attn.proj", "attention.output.LayerNorm": "sum1"},
        **{"intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2", "output.LayerNorm": "sum2"},
    }
    tables = ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight")
    return (
        rename("embeddings.word_embeddings.weight", "token_embed.weight"),
        Rule(tables, ("pos_embed",), Change(there)),
        *both("embeddings.LayerNorm", "embed_norm"),
        *qkv(f"{layer}.attention.self.", ("query", "key", "value"), "blocks.{i}.attn"),
        *(rule for theirs, ours in names.items() for rule in both(f"{layer}.{theirs}", f"blocks.{{i}}.{ours}")),
        drop("embeddings.position_ids"),
        drop("embeddings.token_type_ids"),
        *(Rule((f"pooler.dense.{kind}",), (f"pooler.0.{kind}",), optional=True) for kind in ("weight", "bias")),
    )


BERT, ROBERTA = _bert(0), _bert(2)  # the first positions of RoBERTa belong to padding
# Two linear layers, the second one without a bias
_TWICE = Change(lambda weight, bias, second: (second @ weight, second @ bias))
_ALTCLIP: Rules = (*inside("roberta.", ROBERTA), *both("pre_LN", "norm"))
_TRANSFORMED = ("text_model.transformation.weight", "text_model.transformation.bias", "text_projection.weight")

# ---- OpenAI and open_clip -----------------------------------------------------------------------------------------

_RESBLOCK = "transformer.resblocks.{i}"
OPEN_CLIP: Rules = (
    rename("token_embedding.weight", "token_embed.weight"),
    rename("positional_embedding", "pos_embed"),
    *both(f"{_RESBLOCK}.ln_1", "blocks.{i}.norm1"),
    rename(f"{_RESBLOCK}.attn.in_proj_weight", "blocks.{i}.attn.qkv.weight"),
    rename(f"{_RESBLOCK}.attn.in_proj_bias", "blocks.{i}.attn.qkv.bias"),
    *both(f"{_RESBLOCK}.attn.out_proj", "blocks.{i}.attn.proj"),
    rename(f"{_RESBLOCK}.ls_1.gamma", "blocks.{i}.ls1.gamma"),
    *both(f"{_RESBLOCK}.ln_2", "blocks.{i}.norm2"),
    *both(f"{_RESBLOCK}.mlp.c_fc", "blocks.{i}.mlp.fc1"),
    *both(f"{_RESBLOCK}.mlp.c_proj", "blocks.{i}.mlp.fc2"),
    rename(f"{_RESBLOCK}.ls_2.gamma", "blocks.{i}.ls2.gamma"),
    *both("ln_final", "norm"),
    Rule(("text_projection",), ("projection.weight",), TRANSPOSE),
    *both("text_projection", "projection"),
    drop("attn_mask"),
    rename("cls_emb", "cls_token"),
)
_PROMPTS = ("prompts_visual_layernorm.weight", "prompts_visual_layernorm.bias", "prompts_visual_projection")
_OF_VIDEOS = ("logit_scale", "mit.{rest}", "prompts_generator.{rest}", *_PROMPTS)  # X-CLIP
_OF_OPENAI = ("input_resolution", "context_length", "vocab_size")  # settings, as tensors in OpenAI's own files
# CoCa has a decoder of captions beside the towers
_BESIDE: Rules = (*_LOGITS, drop("visual.{rest}"), drop("text_decoder.{rest}"), *map(drop, _OF_OPENAI))
_WHOLE_TIPSV2: Rules = (
    *inside("text_encoder.", OPEN_CLIP),
    Rule(("temperature",), ("logit_scale",), SCALAR),
    drop("vision_encoder.{rest}"),
)


def _within_open_clip(rules: Rules) -> Rules:
    """Return the rules of a whole model with a text tower of transformers."""
    names = {"text.proj.weight": "projection.weight", "text.proj.0.weight": "projection.0.weight"}
    layers = (rename(*each) for each in {**names, "text.proj.2.weight": "projection.2.weight"}.items())
    return (*inside("text.transformer.", rules), *layers, *_BESIDE)


# ---- dino.txt -----------------------------------------------------------------------------------------------------

_CAUSAL = "backbone.blocks.{i}"
_CAUSAL_PARTS = {
    **{"attention_norm": "norm1", "attention.qkv": "attn.qkv", "attention.proj": "attn.proj", "ffn_norm": "norm2"},
    **{"feed_forward.fc1": "mlp.fc1", "feed_forward.fc2": "mlp.fc2"},
}
_DINOTXT: Rules = (
    rename("backbone.token_embedding.weight", "token_embed.weight"),
    rename("backbone.positional_embedding", "pos_embed"),
    *(rule for a, b in _CAUSAL_PARTS.items() for rule in both(f"{_CAUSAL}.{a}", f"blocks.{{i}}.{b}")),
    *(rename(f"{_CAUSAL}.{name}.gamma", f"blocks.{{i}}.{name}.gamma") for name in ("ls1", "ls2")),
    *both("backbone.ln_final", "norm"),
    rename("head.linear_projection.weight", "projection.weight"),
    *_LOGITS,
)

TEXT: dict[str, Rules] = {
    "dinotxt": _DINOTXT,
    "CLIPModel": _WHOLE_CLIP,
    "CLIPTextModel": _alone(CLIP),
    "CLIPTextModelWithProjection": _PROJECTED,
    "MetaClip2Model": _WHOLE_CLIP,
    "MetaClip2TextModel": _alone(CLIP),
    "MetaClip2TextModelWithProjection": _PROJECTED,
    "XCLIPModel": (*_PROJECTED, *_IMAGES, *map(drop, _OF_VIDEOS)),
    "XCLIPTextModel": _alone(CLIP),
    "SiglipModel": _WHOLE_SIGLIP,
    "SiglipTextModel": _alone(SIGLIP),
    "Siglip2Model": _WHOLE_SIGLIP,
    "Siglip2TextModel": _alone(SIGLIP),
    "Aimv2Model": (*inside("text_model.", AIMV2), *_PROJECTION, *_LOGITS, *_IMAGES),
    "Aimv2TextModel": AIMV2,
    "ChineseCLIPModel": (*inside("text_model.", BERT), *_PROJECTION, *_LOGITS, *_IMAGES),
    "ChineseCLIPTextModel": BERT,
    "AltCLIPModel": (
        *inside("text_model.", _ALTCLIP),
        Rule(_TRANSFORMED, ("projection.weight", "projection.bias"), _TWICE),
        *_LOGITS,
        *_IMAGES,
    ),
    "AltCLIPTextModel": (*_ALTCLIP, *both("transformation", "projection")),
    "Tipsv2Model": _WHOLE_TIPSV2,
    "Tipsv2TextModel": OPEN_CLIP,
    "open_clip": (*OPEN_CLIP, *_BESIDE),
    "open_clip bert": _within_open_clip(BERT),
    "open_clip roberta": _within_open_clip(ROBERTA),
    "open_clip custom_text": (*inside("text.", OPEN_CLIP), *_BESIDE),
}
