"""A backbone in LeRobot's ACT and Diffusion policies, instead of their ResNet (huggingface/lerobot 0.4.4).

    policy = ACTPolicy(ACTConfig(..., pretrained_backbone_weights=None))
    use_in_act(policy, freeze(load_backbone("nano")))

To restore a policy that `save_pretrained` wrote, make it the same way and load its state dict. `from_pretrained` alone
would look for the ResNet.

Axes: `B` batch, `D` width, `F` features, `h w` patch grid, `H W` pixels.
"""

import copy
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from heads.attached import attach
from heads.base import Head
from heads.cameras import output_of_zeros
from heads.policy import KeypointEncoder
from vitbackbone import BackboneModule, FusedPreprocess, Preprocess

Triple = tuple[float, float, float]
Stats = tuple[Triple, Triple]  # mean and std of the colours

IMAGENET: Stats = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # LeRobot's datasets/factory.py, IMAGENET_STATS
UNCHANGED: Stats = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class MapEncoder(nn.Module):
    """The encoder that ACT calls. It turns images, as LeRobot normalises them, into `{"feature_map": (B, D, h, w)}`."""

    def __init__(self, backbone: BackboneModule, stats: Stats, layer: int = -1, norm: bool = True) -> None:
        super().__init__()
        backbone.spec.wanted([layer], norm)  # raises if the backbone lacks the layer or the norm
        self.renormalise = Renormalise(stats, backbone)
        self.backbone = backbone
        self.layer, self.norm = layer, norm

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> dict[str, Float[Tensor, "B D h w"]]:
        (features,) = self.backbone.forward_layers(self.renormalise(images), [self.layer], norm=self.norm)
        return {"feature_map": features.patches}


class VectorEncoder(nn.Module):
    """The encoder that Diffusion calls: it turns images, as LeRobot normalises them, into a flat output (B, F)."""

    def __init__(self, backbone: BackboneModule, head: Head, stats: Stats) -> None:
        super().__init__()
        self.renormalise = Renormalise(stats, backbone)
        self.attached = attach(backbone, {"head": head})

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        return self.attached(self.renormalise(images))["head"].flatten(1)


class Renormalise(nn.Module):
    """A map from images normalised by `stats` to images normalised for a backbone."""

    scale: Tensor
    shift: Tensor

    def __init__(self, stats: Stats, backbone: BackboneModule) -> None:
        super().__init__()
        own = backbone.preprocess
        own = own.parts[0] if isinstance(own, FusedPreprocess) else cast(Preprocess, own)
        pairs = list(zip(*stats, own.mean, own.std, strict=True))
        scale = [std / own_std for _, std, _, own_std in pairs]
        shift = [(mean - own_mean) / own_std for mean, _, own_mean, own_std in pairs]
        for name, values in {"scale": scale, "shift": shift}.items():
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        return images * self.scale + self.shift


def use_in_act(
    policy: nn.Module, backbone: BackboneModule, layer: int = -1, norm: bool = True, stats: Stats | None = None
) -> None:
    """Put a backbone into an `ACTPolicy`, which then reads one layer's map, of any grid, for each camera.

    This replaces `policy.model.backbone` and `encoder_img_feat_input_proj`, with new weights. Parameters keep the
    prefix `model.backbone`, so LeRobot trains them with `optimizer_lr_backbone`. A frozen backbone has none to train.

    `stats` are the mean and std that images are normalised with. The default follows the policy's
    `normalization_mapping`: ImageNet's for MEAN_STD, LeRobot's default for images, and none for IDENTITY.

    Raises `ValueError` on another policy, on a policy without images, and if the backbone lacks the layer or the norm.
    """
    model, config = cast(Any, getattr(policy, "model", None)), cast(Any, policy).config
    if not hasattr(model, "encoder_img_feat_input_proj"):
        raise ValueError(f"use_in_act was given a {type(policy).__name__}; want an ACTPolicy of LeRobot, with images")
    device = next(policy.parameters()).device
    model.backbone = MapEncoder(backbone, stats or _stats(config), layer, norm).to(device)
    width = backbone.spec.dims[layer]
    model.encoder_img_feat_input_proj = nn.Conv2d(width, config.dim_model, kernel_size=1).to(device)


def use_in_diffusion(
    policy: nn.Module, backbone: BackboneModule, head: Head | None = None, stats: Stats | None = None
) -> None:
    """Put a backbone and a head into a `DiffusionPolicy`. LeRobot still resizes and crops the images.

    `head` turns an image into one vector, by default a `KeypointEncoder`, which is LeRobot's form. Its flat output must
    have the size that the policy was made for, 2 * `spatial_softmax_num_keypoints`. With
    `use_separate_rgb_encoder_per_camera`, each camera gets its own copy of both. `stats` is as for `use_in_act`.

    Raises `ValueError` on another policy, on a policy without images, and on a head that does not fit.
    """
    model, config = cast(Any, getattr(policy, "diffusion", None)), cast(Any, policy).config
    if not hasattr(model, "rgb_encoder"):
        raise ValueError(
            f"use_in_diffusion was given a {type(policy).__name__}; want a DiffusionPolicy of LeRobot, with images"
        )
    device = next(policy.parameters()).device
    encoders = model.rgb_encoder if isinstance(model.rgb_encoder, nn.ModuleList) else [model.rgb_encoder]
    if head is None:
        head = KeypointEncoder(backbone.spec, config.spatial_softmax_num_keypoints, norm=backbone.spec.has_norm)
    encoder = VectorEncoder(backbone, head, stats or _stats(config)).to(device)
    _check_width(head, config, cast(Any, encoders[0]).feature_dim)
    for i, theirs in enumerate(encoders):
        theirs.backbone = encoder if i == 0 else copy.deepcopy(encoder)
        theirs.pool = theirs.out = theirs.relu = nn.Identity()


def _stats(config: Any) -> Stats:
    """Return the statistics of the images that the policy's own preprocessor makes."""
    mode = config.normalization_mapping["VISUAL"].value
    known = {"MEAN_STD": IMAGENET, "IDENTITY": UNCHANGED}
    if mode not in known:
        raise ValueError(f"the policy normalises images by {mode}; pass stats=(mean, std) of the normalised images")
    return known[mode]


def _check_width(head: Head, config: Any, wanted: int) -> None:
    """Raise `ValueError` unless the head gives as many features as the policy's U-Net was made for."""
    height, width = config.crop_shape or config.resize_shape or next(iter(config.image_features.values())).shape[-2:]
    found = output_of_zeros(head, (height, width)).numel()
    if found != wanted:
        raise ValueError(
            f"the head gives {found} features of an image, and the policy was made for {wanted}; make the policy with "
            f"spatial_softmax_num_keypoints={found / 2:g}, or the head with another width"
        )
