"""The projection of patches to tokens: of images, of clips, and of groups of channels.

Axes: `B` batch, `C` channels, `g` groups of channels, `T` frames, `t` steps of time, `D` width, `h w` patch grid,
`H W` pixels.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitbackbone.model.config import ViTConfig


class PatchEmbed(nn.Module):
    """The linear projection of p x p patches to width D, as a convolution whose stride equals its kernel size.

    If zeros surround the image, the patches move up and left by their width; the number of patches stays the same.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        p = config.patch_size
        self.proj = nn.Conv2d(
            config.channels, config.dim, kernel_size=p, stride=p, padding=config.patch_padding, bias=config.patch_bias
        )

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return self.proj(images)


class ClipEmbed(nn.Module):
    """The linear projection of patches of several frames to width D, as a convolution (Arnab et al. 2021, ViViT).

    Clips are filled up to whole patches with their last frame. An image is a clip of one frame, or has a projection of
    its own.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.frames, p = config.tubelet, config.patch_size
        size, bias = (self.frames, p, p), config.patch_bias
        self.proj = nn.Conv3d(config.channels, config.dim, kernel_size=size, stride=size, bias=bias)
        own = nn.Conv2d(config.channels, config.dim, kernel_size=p, stride=p, bias=bias)
        self.image_proj = own if config.image_patches else None

    def forward(self, images: Float[Tensor, "B *T C H W"]) -> Float[Tensor, "B D *t h w"]:
        if images.ndim == 4:
            return self.clips(images[:, None])[:, :, 0] if self.image_proj is None else self.image_proj(images)
        return self.clips(images)

    def clips(self, frames: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B D t h w"]:
        if missing := -frames.shape[1] % self.frames:
            frames = torch.cat([frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        return self.proj(frames.transpose(1, 2))


class GroupEmbed(nn.Module):
    """The linear projections of the patches of groups of channels, side by side in one convolution (Cong et al. 2022,
    SatMAE). The kernel of a group is zero for the channels of others.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        p, self.groups = config.patch_size, config.channel_groups
        width = self.groups * config.dim
        self.proj = nn.Conv2d(config.channels, width, kernel_size=p, stride=p, bias=config.patch_bias)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D g h w"]:
        return self.proj(images).unflatten(1, (self.groups, -1)).transpose(1, 2)


class ConvStem(nn.Module):
    """3x3 convolutions and a 1x1 convolution to width D, which replace the patch projection.

    The strides multiply to the patch size (Xiao et al. 2021, "Early convolutions help transformers see better").
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = config.channels
        for out, stride in config.stem:
            layers += [nn.Conv2d(width, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.GELU()]
            width = out
        self.convs = nn.Sequential(*layers)
        self.proj = nn.Conv2d(width, config.dim, kernel_size=1)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return self.proj(self.convs(images))


def patch_embedding(config: ViTConfig) -> PatchEmbed | ClipEmbed | GroupEmbed | ConvStem:
    """Build the layer from images to patch vectors."""
    if config.channel_groups:
        return GroupEmbed(config)
    if config.tubelet:
        return ClipEmbed(config)
    return ConvStem(config) if config.stem else PatchEmbed(config)
