"""The projections of attention as a graph uses them: channels in an order that suits rotation, keys scaled before."""

import copy

from torch import Tensor, nn

from vitbackbone.model import SelfAttention, ViTConfig


def qkv(attn: SelfAttention, config: ViTConfig) -> list[tuple[Tensor, Tensor | None]]:
    """Return weight and bias of the three projections. Queries and keys have their channels in the order of
    `channels`, and keys are pre-scaled by 1/√d unless limits or a norm follow."""
    weights: list[Tensor] = list(attn.qkv.weight.detach().split(attn.widths))
    biases: list[Tensor | None] = (
        [None] * 3 if attn.qkv.bias is None else list(attn.qkv.bias.detach().split(attn.widths))
    )
    if attn.q_bias is not None and attn.v_bias is not None:
        biases = [attn.q_bias, None, attn.v_bias]
    for part in (0, 1):
        order = _order(attn.widths[part], config)
        weights[part], bias = weights[part][order], biases[part]
        biases[part] = bias if bias is None else bias[order]
    if attn.qk_norm == "none" and not config.clipped:
        scale = config.head_width**-0.5
        weights[1], biases[1] = weights[1] * scale, None if biases[1] is None else biases[1] * scale
    return list(zip(weights, biases, strict=True))


def qk_norms(attn: SelfAttention, config: ViTConfig) -> tuple[nn.Module, nn.Module]:
    """Return the norms of queries and keys, with channels in the order of `channels`. The keys' norm contains 1/√d."""
    if attn.qk_norm == "none":
        return attn.q_norm, attn.k_norm
    norms = []
    for norm, scale in ((attn.q_norm, 1.0), (attn.k_norm, config.head_width**-0.5)):
        made = copy.deepcopy(norm)
        for parameter in made.parameters():
            parameter.data = parameter.data[_order(len(parameter), config)] * scale
        norms.append(made)
    return norms[0], norms[1]


def _order(width: int, config: ViTConfig) -> list[int]:
    """Return the order of `channels` within each head, of all heads side by side."""
    return [start + channel for start in range(0, width, config.head_width) for channel in channels(config)]


def channels(config: ViTConfig) -> list[int]:
    """Return the channels of a head in an order that puts rotated pairs half a head apart. The order does not change
    the products of queries and keys."""
    width = config.head_width
    if config.rotary is None or config.rotary.pairs == "halves":
        return list(range(width))
    return [*range(0, width, 2), *range(1, width, 2)]
