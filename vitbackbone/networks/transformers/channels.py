"""Image encoders of transformers for another number of channels than they were made for."""

from typing import Any

from torch import nn

from vitbackbone.model import inflate_kernel
from vitbackbone.networks.transformers.parts import CHANNELS, channels_of

Layer = nn.Conv2d | nn.Conv3d | nn.Linear


def widen(encoder: nn.Module, config: Any, channels: int, patch: int) -> None:
    """Fit an encoder of RGB images to images of `channels` channels, in place, by timm's rule.

    `patch`: the side of a patch in pixels, if a linear layer embeds patches.
    Raises `ValueError` unless exactly one layer reads the pixels. It is a convolution of the config's number of
    channels, or a linear layer of whole patches that keeps each channel together.
    """
    own = channels_of(config)
    if own == channels:
        return
    if own != 3:
        raise ValueError(f"in_chans={channels}: the network was trained on {own} bands; pass images of {own} channels")
    layer = _pixel_layer(encoder, own, patch)
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        pixels = inflate_kernel(weight.unflatten(1, (-1, own)).transpose(1, 2), channels).transpose(1, 2).flatten(1)
        layer.in_features = pixels.shape[1]
    else:
        pixels = inflate_kernel(weight, channels)
        layer.in_channels = channels
    layer.weight = nn.Parameter(pixels.contiguous(), layer.weight.requires_grad)
    for each in (config, *encoder.modules(), *(getattr(module, "config", None) for module in encoder.modules())):
        for name in CHANNELS:  # encoders compare the images with these
            if isinstance(each, Layer) or getattr(each, name, None) != own:
                continue
            setattr(each, name, channels)
    if channels_of(config) != channels:  # a config without such a name, because the encoder has no choice
        setattr(config, CHANNELS[0], channels)


def _pixel_layer(encoder: nn.Module, channels: int, patch: int) -> Layer:
    """Return the only layer that reads pixels. Raises `ValueError` if there is none, or more than one."""
    convolutions = [
        each
        for each in encoder.modules()
        if isinstance(each, nn.Conv2d | nn.Conv3d) and each.in_channels == channels and each.groups == 1
    ]
    linear = [
        each for each in encoder.modules() if isinstance(each, nn.Linear) and each.in_features == channels * patch**2
    ]
    found: list[Layer] = [*convolutions] or [*linear]
    if len(found) != 1:
        raise ValueError(
            f"in_chans: {type(encoder).__name__} has {len(found)} layers that may read the pixels; want one"
        )
    return found[0]
