"""The layouts of image towers in open_clip's files: its own Vision Transformers, or a network of timm as `trunk`.

Keys are relative to the tower. open_clip's `head` is beside the trunk.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.checkpoints.formats.changes import FOLD_FLAT, TRANSPOSE
from vitbackbone.checkpoints.rules import HEADS, Change, Rule, Rules, beside, both, rename

_RESBLOCK = "transformer.resblocks.{i}"
_VIT: Rules = (
    rename("conv1.weight", "patch_embed.proj.weight"),
    Rule(("class_embedding", "positional_embedding"), ("cls_token", "pos_embed.table"), FOLD_FLAT),
    *both("ln_pre", "norm_pre"),
    *both(f"{_RESBLOCK}.ln_1", "blocks.{i}.norm1"),
    rename(f"{_RESBLOCK}.attn.in_proj_weight", "blocks.{i}.attn.qkv.weight"),
    rename(f"{_RESBLOCK}.attn.in_proj_bias", "blocks.{i}.attn.qkv.bias"),
    *both(f"{_RESBLOCK}.attn.out_proj", "blocks.{i}.attn.proj"),
    rename(f"{_RESBLOCK}.ls_1.gamma", "blocks.{i}.ls1.gamma"),
    *both(f"{_RESBLOCK}.ln_2", "blocks.{i}.norm2"),
    *both(f"{_RESBLOCK}.mlp.c_fc", "blocks.{i}.mlp.fc1"),
    *both(f"{_RESBLOCK}.mlp.c_proj", "blocks.{i}.mlp.fc2"),
    rename(f"{_RESBLOCK}.ls_2.gamma", "blocks.{i}.ls2.gamma"),
    Rule(("proj",), ("projection.weight",), TRANSPOSE),
)
OPEN_CLIP: Rules = (
    *_VIT,
    *both("ln_post", "norm"),
    *both("ln_post", "fc_norm"),  # where it follows the mean of the patches
)


def _first_query(queries: Tensor, weight: Tensor, bias: Tensor, *layers: Tensor) -> tuple[Tensor, ...]:
    """Return the first query as attention sees it, and the layer for keys and values.

    `layers`: the weights for q, k and v, apart or as one, and their biases as one. The other queries serve the decoder
    of captions.
    """
    *weights, biases = layers
    to_q, to_k, to_v = weights if len(weights) == 3 else weights[0].chunk(3)
    bias_q, bias_k, bias_v = biases.chunk(3)
    query = F.linear(F.layer_norm(queries[:1], weight.shape, weight, bias, COCA_EPS), to_q, bias_q)
    return query[None], torch.cat([to_k, to_v]), torch.cat([bias_k, bias_v])


COCA_EPS = 1e-5  # epsilon of the norms in open_clip's AttentionalPooler, whatever the configuration
_QUERY = ("attn_pool.query", "attn_pool.ln_q.weight", "attn_pool.ln_q.bias")
_LATENT = ("attn_pool.latent", "attn_pool.kv.weight", "attn_pool.kv.bias")
_APART = ("q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")
COCA: Rules = (
    *_VIT,
    *both("attn_pool.ln_k", "norm"),  # it reads all tokens of the last block, as a final norm does
    *(
        Rule((*_QUERY, *(f"attn_pool.attn.{name}" for name in names)), _LATENT, Change(_first_query))
        for names in (_APART, ("in_proj_weight", "in_proj_bias"))
    ),
    *both("attn_pool.attn.out_proj", "attn_pool.proj"),
    *both("ln_post", "attn_pool.norm"),
)


def trunks(layouts: Mapping[str, Rules]) -> dict[str, Rules]:
    """Return timm's layouts with the projection of an image-text model instead of a classifier.

    The projection is timm's own head, or open_clip's beside the trunk.
    """
    return {f"open_clip {name}": _projected(rules) for name, rules in layouts.items()}


def _projected(rules: Rules) -> Rules:
    kept = tuple(rule for rule in rules if not any(target.startswith(HEADS) for target in rule.targets))
    has = any("head.weight" in rule.sources for rule in kept)
    return (*kept, *(() if has else both("head", "projection")), *beside(both("head.proj", "projection")))
