"""Weights for images of another number of channels than the checkpoint was trained on."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from vitbackbone.checkpoints.rules import ConversionError, Rules, State
from vitbackbone.images import Preprocess
from vitbackbone.model import ViTConfig, inflate_kernel
from vitbackbone.networks import TimmBackbone, TimmConfig

RGB = 3
VIT_KERNELS = ("patch_embed.proj.weight", "patch_embed.convs.0.weight")


def with_channels(config: ViTConfig | TimmConfig, channels: int | None) -> ViTConfig | TimmConfig:
    """Return a configuration for images of `channels` channels; None keeps its own.

    Raises `ValueError` if the network's own bands are not red, green and blue, because each has a kernel of its own.
    """
    if channels is None or channels == config.channels:
        return config
    if isinstance(config, ViTConfig) and (config.wavelengths or config.channel_groups):
        wanted = "wavelengths=" if config.wavelengths else f"images of {config.channels} channels, without in_chans"
        raise ValueError(f"in_chans={channels}: the channels of this network have no kernels to inflate; give {wanted}")
    if channels < 1:
        raise ValueError(f"in_chans={channels}; want at least 1")
    if config.channels != RGB:
        raise ValueError(
            f"in_chans={channels}: the network was trained on {config.channels} bands, and each has a kernel of its "
            f"own, which no rule turns into {channels}. Pass images of {config.channels} channels, without in_chans"
        )
    return replace(config, channels=channels)


def with_wavelengths(config: ViTConfig | TimmConfig, wavelengths: tuple[float, ...]) -> ViTConfig:
    """Return a configuration for images with a channel of each wavelength, in micrometres.

    Raises `ValueError` if the network has a kernel of its own for each channel, or if a wavelength is not above 0.
    """
    if not isinstance(config, ViTConfig) or not config.wavelengths:
        raise ValueError(
            f"wavelengths={wavelengths}: the network has a kernel of its own for each channel of its images"
        )
    if not wavelengths or not all(0 < each < 100 for each in wavelengths):
        raise ValueError(f"wavelengths={wavelengths}; want micrometres, such as 0.665 for red, one for each channel")
    return replace(config, channels=len(wavelengths), wavelengths=wavelengths)


def kernels(backbone: Any) -> tuple[str, ...]:
    """Return the names of the parameters that read the channels of the images."""
    if not isinstance(backbone, TimmBackbone):
        return VIT_KERNELS
    first = backbone.model.pretrained_cfg.get("first_conv") or ()
    return tuple(f"model.{name}.weight" for name in ((first,) if isinstance(first, str) else first))


def stored_channels(
    config: ViTConfig | TimmConfig, names: tuple[str, ...], rules: Rules, tensors: State, own: int
) -> int:
    """Return the number of channels of a checkpoint's kernels: the configuration's, or else `own`.

    `names`: the parameters that read the channels.
    """
    if isinstance(config, ViTConfig) and (config.wavelengths or config.channel_groups):
        return config.channels
    for rule in rules:
        if rule.targets and rule.targets[0] in names and rule.sources[0] in tensors:
            shape = tensors[rule.sources[0]].shape
            if len(shape) >= 4 and shape[1] == config.channels:
                return config.channels
    return own


def inflate(parameters: dict[str, Tensor], names: tuple[str, ...], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fit the kernels of RGB images to the channels of the network, by the rule of `inflate_kernel`.

    Raises `ConversionError` for a kernel that does not read red, green and blue.
    """
    changed = dict(parameters)
    for name in (name for name in names if name in parameters):
        kernel, channels = parameters[name], wanted[name].shape[1]
        if kernel.shape == wanted[name].shape:  # a stem reads the channels in another layer
            continue
        if kernel.ndim not in (4, 5) or kernel.shape[1] != RGB:  # of images or clips
            shape = " x ".join(map(str, kernel.shape))
            raise ConversionError(f"{name} has the shape {shape}, and in_chans needs a convolution of 3 channels")
        changed[name] = inflate_kernel(kernel, channels)
    return changed


def preprocess_for(preprocess: Preprocess, channels: int) -> Preprocess:
    """Return the transform for `channels` channels. It repeats the means and deviations as the kernels are repeated.

    One channel has the average of the three. Replace them if the statistics of the bands are known.
    """
    if channels == preprocess.channels:
        return preprocess

    def of_bands(values: tuple[float, ...]) -> tuple[float, ...]:
        return (
            (sum(values) / len(values),) if channels == 1 else tuple(values[i % len(values)] for i in range(channels))
        )

    return replace(preprocess, mean=of_bands(preprocess.mean), std=of_bands(preprocess.std))
