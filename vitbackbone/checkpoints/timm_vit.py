"""The configuration of this package's `ViT` that equals a `VisionTransformer` of timm, read from its modules.

Every architecture that is built of these modules runs natively, with any arguments: names do not matter.
"""

from typing import Any

from torch import nn

from vitbackbone.checkpoints.zoo.entry import TIMM_RESAMPLING
from vitbackbone.model import MlpKind, Pool, QkvBias, ViTConfig

ACTIVATIONS: dict[str, MlpKind] = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
POOLS: dict[str, Pool] = {"token": "cls", "avg": "mean", "map": "map"}


class _Different(Exception):
    """A network that differs from `ViT`."""


def native_vit(model: nn.Module) -> tuple[ViTConfig, str] | None:
    """Return the configuration and the key layout of a timm network that `ViT` equals, or None if none equals it."""
    from timm.models.vision_transformer import VisionTransformer

    if type(model) is not VisionTransformer:
        return None
    try:
        return _config(model), _layout(model)
    except (_Different, AttributeError, ValueError):  # newer versions of timm may have other attributes
        return None


def _config(model: Any) -> ViTConfig:
    embed, blocks = model.patch_embed, list(model.blocks)
    fields = _block(blocks[0])
    for block in blocks[1:]:
        _need(_block(block) == fields)
    patch = embed.proj.kernel_size
    _need(type(embed).__name__ == "PatchEmbed" and not _exists(embed.norm) and not _exists(model.patch_drop))
    _need(patch == embed.proj.stride and patch[0] == patch[1] and embed.proj.in_channels == 3)
    pools_mean, registers = model.global_pool == "avg", int(model.num_reg_tokens)
    _need(not model.pool_include_prefix and model.global_pool in (*POOLS, ""))
    _need(not _exists(model.fc_norm) or pools_mean)
    _need(model.global_pool != "map" or _attention_pool(model.attn_pool) == _attention_pool_of(fields, model))
    _need(model.pos_embed is None or model.no_embed_class or not registers)
    norms = [norm for norm in (model.norm, model.fc_norm, model.norm_pre) if _exists(norm)]
    _need({_epsilon(norm) for norm in norms} <= {fields["norm_eps"]})
    unpooled: Pool = "cls" if model.cls_token is not None else "mean"
    return ViTConfig(
        **fields,
        image_size=tuple(side // patch[0] * patch[0] for side in embed.img_size),
        patch_size=patch[0],
        dim=model.embed_dim,
        depth=len(blocks),
        patch_bias=embed.proj.bias is not None,
        pre_norm=_exists(model.norm_pre),
        cls=model.cls_token is not None,
        num_registers=registers,
        position="none" if model.pos_embed is None else "learned",
        resampling=TIMM_RESAMPLING,
        final_norm=_exists(model.norm),
        fc_norm=_exists(model.fc_norm),
        pool=POOLS.get(model.global_pool, unpooled),
    )


def _layout(model: Any) -> str:
    with_cls = model.pos_embed is not None and not model.no_embed_class and model.cls_token is not None
    return "timm" if with_cls else "timm_no_embed_class"


def _block(block: Any) -> dict[str, Any]:
    """Return the settings of `ViTConfig` that a block shows."""
    attention, mlp = block.attn, block.mlp
    _need(type(block).__name__ == "Block" and type(attention).__name__ == "Attention")
    _need(not any(map(_exists, (attention.q_norm, attention.k_norm, attention.norm, mlp.norm))))
    _need(attention.gate is None and attention.proj.bias is not None and mlp.fc1.bias is not None)
    _need(attention.head_dim * attention.num_heads == attention.qkv.in_features)
    _need(attention.scale == attention.head_dim**-0.5 and _exists(block.ls1) == _exists(block.ls2))
    _need(_epsilon(block.norm1) == _epsilon(block.norm2))
    biased: QkvBias = "qkv" if attention.qkv.bias is not None else "none"
    return {
        "num_heads": attention.num_heads,
        "qkv_bias": biased,
        "layer_scale": _exists(block.ls1),
        "norm_eps": _epsilon(block.norm1),
        "mlp": _mlp(mlp),
        "mlp_dim": mlp.fc2.in_features,
    }


def _mlp(mlp: Any) -> MlpKind:
    activation = type(mlp.act).__name__
    if type(mlp).__name__ == "GluMlp" and activation == "SiLU" and not mlp.gate_last:
        return "swiglu"
    _need(type(mlp).__name__ == "Mlp" and activation in ACTIVATIONS)
    if activation == "GELU" and getattr(mlp.act, "approximate", "none") == "tanh":
        return "gelu_tanh"
    return ACTIVATIONS[activation]


def _attention_pool(pool: Any) -> tuple[object, ...]:
    """Return the settings of an attention pooling that must equal the settings of the blocks."""
    _need(type(pool).__name__ == "AttentionPoolLatent" and pool.pool == "token" and pool.pos_embed is None)
    _need(pool.latent_len == 1 and not _exists(pool.q_norm) and not _exists(pool.k_norm))
    return pool.num_heads, _mlp(pool.mlp), pool.mlp.fc2.in_features, _epsilon(pool.norm), pool.latent_dim


def _attention_pool_of(fields: dict[str, Any], model: Any) -> tuple[object, ...]:
    return fields["num_heads"], fields["mlp"], fields["mlp_dim"], fields["norm_eps"], model.embed_dim


def _epsilon(norm: Any) -> float:
    _need(type(norm).__name__ == "LayerNorm" and norm.weight is not None and norm.bias is not None)
    return norm.eps


def _exists(module: nn.Module) -> bool:
    return not isinstance(module, nn.Identity)


def _need(fact: bool) -> None:
    if not fact:
        raise _Different
