"""Several backbones as one: each is given the photo in its own colours, and their patches stand side by side.

OpenVLA's vision encoder is one of DINOv2 and SigLIP (Kim et al. 2024; prismatic-vlms,
prismatic/models/backbones/vision/dinosiglip_vit.py).

Axes: `B` batch, `C` channels of all members' pictures (3n), `D` width, `h w` patch grid, `H W` pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vitbackbone.contract import (
    Asked,
    Backbone,
    BackboneModule,
    BackboneSpec,
    Features,
    Images,
    align,
    any_size,
    check_images,
    stack,
)
from vitbackbone.images import (
    CropMode,
    Decoding,
    ImageSource,
    Photo,
    Preprocess,
    Resolution,
    View,
    check_area,
    enough,
    open_image,
    stack_images,
)

Strategy = Literal["resize-naive", "letterbox", "crop"]  # prismatic's names; its "resize-crop" is the last

CROP_MODES: dict[Strategy, CropMode] = {"resize-naive": "squash", "letterbox": "letterbox", "crop": "center"}


@dataclass(frozen=True)
class FusedPreprocess:
    """Image file to the pictures of all members, one after another on the channels.

    Each picture has its member's own interpolation, mean and std, and in a letterbox its own colour of the border. All
    have the one view that `strategy` names, with nothing cut away but what stands out of `image_size`: members that saw
    different parts of the photo would have no common grid. That is also what OpenVLA does: it sets every `crop_pct` to
    1 (prismatic/extern/hf/processing_prismatic.py), so the parts' own is without effect.

    The border's colours are those of OpenVLA's training code; its Hugging Face processor gives every member the border
    of the last one.
    """

    parts: tuple[Preprocess, ...]  # of each member
    image_size: tuple[int, int] = (224, 224)  # (H, W)
    strategy: Strategy = "resize-naive"

    def __post_init__(self) -> None:
        if not self.parts or not all(isinstance(part, Preprocess) for part in self.parts):
            kinds = [type(part).__name__ for part in self.parts]
            raise ValueError(f"FusedPreprocess: parts are {kinds}; want at least one, all of them Preprocess")
        if self.strategy not in CROP_MODES:
            raise ValueError(f"FusedPreprocess: strategy={self.strategy!r}; want one of {', '.join(CROP_MODES)}")

    def __call__(
        self,
        image: ImageSource,
        resolution: Resolution | None = None,
        keep_aspect: bool = False,
        max_pixels: int | None = None,
    ) -> Float[Tensor, "C H W"]:
        """Turn an image into a float32 tensor (3n, H, W). Arguments and errors are those of `Preprocess`."""
        return self.normalise(self.pixels(open_image(image, max_pixels), resolution, keep_aspect))

    def batch(
        self,
        images: Sequence[ImageSource],
        resolution: Resolution | None = None,
        keep_aspect: bool = False,
        max_pixels: int | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """Turn several images into one float32 tensor (B, 3n, H, W), as `Preprocess.batch` does."""
        return stack_images(self, images, resolution, keep_aspect, max_pixels)

    def pixels(
        self,
        photo: Photo,
        resolution: Resolution | None = None,
        keep_aspect: bool = False,
        decoding: Decoding = "exact",
    ) -> UInt8[Tensor, "C H W"]:
        """What `__call__` makes of the same photo before it is normalised. As `Preprocess.pixels`."""
        view = self.view(photo.size, resolution, keep_aspect)
        check_area(view, photo.max_pixels)
        rgb = photo.decode(enough(view) if decoding == "draft" else None)
        kinds = [
            (part.interpolation, part.resampling, part.border if view.pad != (0, 0) else None) for part in self.parts
        ]
        of_kind, exact = dict(zip(kinds, self.parts, strict=True)), decoding == "exact"
        pictures = {kind: part.cut(rgb, view, exact) for kind, part in of_kind.items()}
        return torch.cat([pictures[kind] for kind in kinds])

    def normalise(self, pixels: UInt8[Tensor, "*batch C H W"]) -> Float[Tensor, "*batch C H W"]:
        """`pixels` as `__call__` gives them out, in float32, on their device."""
        pictures = pixels.split(3, dim=-3)
        return torch.cat([part.normalise(own) for part, own in zip(self.parts, pictures, strict=True)], dim=-3)

    def view(self, source: tuple[int, int], resolution: Resolution | None = None, keep_aspect: bool = False) -> View:
        """What `__call__` cuts out of a photo of (H, W) pixels, for every member alike."""
        return self._on_one_view()[0].view(source, resolution, keep_aspect)

    def _on_one_view(self) -> list[Preprocess]:
        mode = CROP_MODES[self.strategy]
        return [
            replace(part, image_size=self.image_size, crop_pct=1.0, crop_mode=mode, crop_rounding="even")
            for part in self.parts
        ]


@dataclass(frozen=True, eq=False)
class Member:
    """One of the backbones, and what is taken of it."""

    backbone: Backbone
    layer: int  # 0-based, negative from the end
    norm: bool  # whether its final norm is applied


class FusedBackbone(BackboneModule):
    """Several backbones as one: a `Backbone` of one layer, made of one layer of each member.

    `patches` are the members' patches concatenated on the channels, in the members' order, on the grid of the finest
    member (the smallest stride), where no member loses detail. A coarser map is interpolated bilinearly at the centres
    of these patches, where they lie in the image; that of a member of the same stride is taken as it is.
    `cls` are the members' CLS tokens, concatenated, or None if one of them has none. There are no registers: they
    correspond to nothing in another member.

    Images: (B, 3n, H, W) as `preprocess` makes them; or (B, 3, H, W) normalised as the first member wants, which the
    others then get in their own normalisation; or lists of such images of different sizes.

    `preprocess`: by default that of each member, squashed to the first one's size.
    Raises `ValueError` on members that are no modules, that lack the layer or the norm asked, or that do not go with
    `preprocess`.
    """

    preprocess: FusedPreprocess

    def __init__(
        self, members: Sequence[Member], preprocess: FusedPreprocess | None = None, name: str = "fused"
    ) -> None:
        super().__init__()
        if not members:
            raise ValueError("a fused backbone of no members; want at least one")
        for member in members:
            if not isinstance(member.backbone, nn.Module):
                raise ValueError(f"a member is a {type(member.backbone).__name__}; want one that is an nn.Module")
            spec = member.backbone.spec
            if not -spec.depth <= member.layer < spec.depth:
                raise ValueError(f"{spec.name} has layers from {-spec.depth} to {spec.depth - 1}, not {member.layer}")
            if member.norm and not spec.norms([member.layer]):
                raise ValueError(f"{spec.name} has no final norm for layer {member.layer}; pass norm=False")
        if preprocess is None:
            own = cast(tuple[Preprocess, ...], tuple(member.backbone.preprocess for member in members))  # it checks
            preprocess = FusedPreprocess(own, own[0].image_size)
        if len(preprocess.parts) != len(members):
            raise ValueError(f"{len(members)} members, and preprocessing for {len(preprocess.parts)}; want one each")
        self.members = nn.ModuleList([cast(nn.Module, member.backbone) for member in members])
        self.layers = tuple(member.layer % member.backbone.spec.depth for member in members)
        self.norms = tuple(member.norm for member in members)
        self.preprocess = preprocess
        self.channels = tuple(dict.fromkeys((3, 3 * len(members))))
        self.spec = _spec(name, members, preprocess)

    def forward(self, images: Images, asked: Asked | None = None) -> Any:
        """See `BackboneModule`. Where every member's norm is applied, `norm=False` leaves out all of them; else there
        is no norm in common, `norm=True` is refused, and each member keeps its own choice. Of a member no block after
        its layer is run. Raises `ValueError` if attention is asked: the members attend each among its own tokens."""
        asked = asked or self.last
        check_images(images, self.channels)
        if asked.part == "attention":
            raise ValueError(f"{self.spec.name} has no attention of its own; ask a member: members[i].attention")
        with any_size():
            norms = sorted({norm for _, norm in asked.wanted})
            if isinstance(images, Tensor):
                joined = [_join(parts) for parts in self._ask(self._pictures(images), norms)]
            else:  # each member runs all images at once; they are joined one by one, each on its own grid
                pictures = zip(*(self._pictures(image[None]) for image in images), strict=True)
                found = self._ask([[one[0] for one in of_member] for of_member in pictures], norms)
                joined = [
                    stack([_join([part.image(i) for part in parts]) for i in range(len(images))]) for parts in found
                ]
            return asked.answer({(0, norm): features for norm, features in zip(norms, joined, strict=True)})

    def _ask(self, pictures: Sequence[Images], norms: Sequence[bool]) -> list[tuple[Features, ...]]:
        """What the members make of what each is given, with each of the norms."""
        each = [
            member.backbone.forward_layers(
                picture,
                [member.layer] * len(norms),
                norm=[norm if self.spec.has_norm else member.norm for norm in norms],
            )
            for member, picture in zip(self._members(), pictures, strict=True)
        ]
        return list(zip(*each, strict=True))

    def _pictures(self, images: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B 3 H W"]]:
        """What each member is given."""
        if images.shape[1] == 3 * len(self.members):
            return list(images.split(3, dim=1))
        first, *others = self.preprocess.parts
        return [images, *(_renormalise(images, first, other) for other in others)]

    def _members(self) -> list[Member]:
        parts = zip(self.members, self.layers, self.norms, strict=True)
        return [Member(cast(Backbone, module), layer, norm) for module, layer, norm in parts]


def _spec(name: str, members: Sequence[Member], preprocess: FusedPreprocess) -> BackboneSpec:
    parts = [(member.backbone.spec, member.layer % member.backbone.spec.depth, member.norm) for member in members]
    return BackboneSpec(
        name=name,
        dim=sum(spec.dims[layer] for spec, layer, _ in parts),
        depth=1,
        num_heads=sum(spec.num_heads for spec, _, _ in parts),
        stride=min(spec.strides[layer] for spec, layer, _ in parts),
        num_registers=0,
        has_cls=all(spec.has_cls for spec, _, _ in parts),
        has_norm=all(norm for _, _, norm in parts),
        image_size=preprocess.image_size,
        settings=repr([(spec.name, layer, norm, spec.settings) for spec, layer, norm in parts]),
    )


def _join(parts: Sequence[Features]) -> Features:
    """The members' features side by side, on the finest grid."""
    finest = min((part.geometry for part in parts), key=lambda geometry: geometry.stride)
    patches = torch.cat([align(part, finest) for part in parts], dim=1)
    tokens = [part.cls for part in parts if part.cls is not None]
    cls = torch.cat(tokens, dim=1) if len(tokens) == len(parts) else None
    return Features(cls, patches.new_empty(patches.shape[0], 0, patches.shape[1]), patches, finest)


def _renormalise(images: Float[Tensor, "B 3 H W"], old: Preprocess, new: Preprocess) -> Float[Tensor, "B 3 H W"]:
    """From one mean and std to another. They are Python's numbers, so that no precision of a module rounds them."""
    channels = zip(images.unbind(1), old.mean, old.std, new.mean, new.std, strict=True)
    return torch.stack(
        [x * (std / to_std) + (mean - to_mean) / to_std for x, mean, std, to_mean, to_std in channels], 1
    )


# ---- by name ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FusedConfig:
    """A fused backbone as data."""

    members: tuple[tuple[str, int, bool], ...]  # name that `load_backbone` knows, layer, norm
    image_size: tuple[int, int]  # (H, W)
    strategy: Strategy = "resize-naive"


def fuse(config: FusedConfig, backbones: Sequence[Backbone], name: str) -> FusedBackbone:
    """The fused backbone of a configuration, out of its members in their order."""
    parts = zip(backbones, config.members, strict=True)
    members = [Member(backbone, layer, norm) for backbone, (_, layer, norm) in parts]
    own = cast(tuple[Preprocess, ...], tuple(backbone.preprocess for backbone in backbones))  # `FusedPreprocess` checks
    return FusedBackbone(members, FusedPreprocess(own, config.image_size, config.strategy), name)
