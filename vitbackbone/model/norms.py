"""Norms over the channels of a token: layer norm (Ba et al. 2016), or the root mean square (Zhang & Sennrich 2019)."""

from torch import nn

from vitbackbone.model.config import ViTConfig

Norm = nn.LayerNorm | nn.RMSNorm
KINDS: dict[str, type[nn.LayerNorm] | type[nn.RMSNorm]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


def make_norm(config: ViTConfig, width: int | None = None) -> Norm:
    """Build a norm of the configuration's kind, over `width` channels or the tokens' width."""
    return KINDS[config.norm](config.dim if width is None else width, eps=config.norm_eps)


def plain_norm(width: int) -> nn.RMSNorm:
    """Build a root mean square without weights, whose epsilon is the smallest of the precision."""
    return nn.RMSNorm(width, eps=None, elementwise_affine=False)


def norm_or_identity(wanted: bool, config: ViTConfig, width: int | None = None) -> Norm | nn.Identity:
    """Build a norm if it is wanted."""
    return make_norm(config, width) if wanted else nn.Identity()
