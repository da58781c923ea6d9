"""Several backbones as one: each gets the photo in its own normalisation, and their patches are concatenated.

OpenVLA's vision encoder fuses DINOv2 and SigLIP (Kim et al. 2024; prismatic-vlms,
prismatic/models/backbones/vision/dinosiglip_vit.py).

Axes: `B` batch, `C` channels of the n members' pictures (3n), `D` width, `h w` patch grid, `H W` pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Shaped
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
    pool_cls_or_mean,
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
    open_image,
    stack_images,
)

Strategy = Literal["resize-naive", "letterbox", "crop"]  # prismatic's names; its "resize-crop" is the last

CROP_MODES: dict[Strategy, CropMode] = {"resize-naive": "squash", "letterbox": "letterbox", "crop": "center"}


@dataclass(frozen=True)
class FusedPreprocess:
    """The transform from an image file to the pictures of all members, concatenated on the channels.

    Each picture has its member's own interpolation, mean and std, and in a letterbox its own border colour. All
    pictures show the same view of the photo, because maps of different views have no common grid. `strategy` and
    `image_size` decide the view, and the parts' own crop settings have no effect. OpenVLA also sets every `crop_pct` to
    1 (prismatic/extern/hf/processing_prismatic.py).

    Border colours follow OpenVLA's training code. Its Hugging Face processor gives every member the last member's
    border.

    Raises `ValueError` if a part is no `Preprocess` or `strategy` is unknown.
    """

    parts: tuple[Preprocess, ...]  # one for each member
    image_size: tuple[int, int] = (224, 224)  # (H, W)
    strategy: Strategy = "resize-naive"

    def __post_init__(self) -> None:
        if not self.parts or not all(isinstance(part, Preprocess) for part in self.parts):
            kinds = [type(part).__name__ for part in self.parts]
            raise ValueError(f"FusedPreprocess: parts are {kinds}; want at least one Preprocess and nothing else")
        if self.strategy not in CROP_MODES:
            raise ValueError(f"FusedPreprocess: strategy={self.strategy!r}; want one of {', '.join(CROP_MODES)}")

    def __call__(
        self,
        image: ImageSource,
        resolution: Resolution | None = None,
        keep_aspect: bool = False,
        max_pixels: int | None = None,
    ) -> Float[Tensor, "C H W"]:
        """Turn an image into a float32 tensor (3n, H, W). Arguments and errors are the same as for `Preprocess`."""
        return self.normalise(
            self.pixels(open_image(image, max_pixels, self.parts[0].channels), resolution, keep_aspect)
        )

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
    ) -> Shaped[Tensor, "C H W"]:
        """Return the pixels of all pictures before normalisation. See `Preprocess.pixels`."""
        view = self.view(photo.size, resolution, keep_aspect)
        check_area(view, photo.max_pixels)
        rgb = self.parts[0].decoded(photo, view, decoding)
        kinds = [
            (part.interpolation, part.resampling, part.border if view.pad != (0, 0) else None) for part in self.parts
        ]
        of_kind, exact = dict(zip(kinds, self.parts, strict=True)), decoding == "exact"
        pictures = {kind: part.cut(rgb, view, exact) for kind, part in of_kind.items()}
        return torch.cat([pictures[kind] for kind in kinds])

    def normalise(self, pixels: Shaped[Tensor, "*batch C H W"]) -> Float[Tensor, "*batch C H W"]:
        """Return `pixels` in float32 with each member's mean and std applied, on the same device."""
        pictures = pixels.split(self.parts[0].channels, dim=-3)
        return torch.cat([part.normalise(own) for part, own in zip(self.parts, pictures, strict=True)], dim=-3)

    def view(self, source: tuple[int, int], resolution: Resolution | None = None, keep_aspect: bool = False) -> View:
        """Return the view that every member has of a photo of (H, W) pixels."""
        return self._on_one_view()[0].view(source, resolution, keep_aspect)

    def _on_one_view(self) -> list[Preprocess]:
        mode = CROP_MODES[self.strategy]
        return [
            replace(
                part,
                image_size=self.image_size,
                unseen=(0, 0),
                crop_pct=1.0,
                crop_mode=mode,
                crop_rounding="even",
            )
            for part in self.parts
        ]


@dataclass(frozen=True, eq=False)
class Member:
    """One of the backbones, and the layer that the fused backbone takes from it."""

    backbone: Backbone
    layer: int  # 0-based, negative from the end
    norm: bool  # whether its final norm is applied


class FusedBackbone(BackboneModule):
    """A backbone of one layer that joins one layer of each member.

    `patches` concatenates the members' patches on the channels, in the members' order. The grid is the one with the
    smallest stride, so that no member loses detail. Maps of a larger stride are interpolated bilinearly at the centres
    of that grid (see `align`); maps of the same stride are unchanged.
    `cls` concatenates the members' CLS tokens, or is None if a member has none. `registers` is empty, because the
    registers of different members do not correspond.

    Images are (B, 3n, H, W) as `preprocess` returns them. Or they are (B, 3, H, W) in the first member's normalisation,
    which is converted for the other members. Lists of such images may have different sizes.

    `preprocess`: by default each member's own, with the photo squashed to the first member's size.
    Raises `ValueError` if there are no members, or if a member is not a module or lacks the layer or the norm.
    `preprocess` must have as many parts as there are members.
    """

    preprocess: FusedPreprocess

    def __init__(
        self, members: Sequence[Member], preprocess: FusedPreprocess | None = None, name: str = "fused"
    ) -> None:
        super().__init__()
        if not members:
            raise ValueError("FusedBackbone was given no members; want at least one")
        for member in members:
            if not isinstance(member.backbone, nn.Module):
                raise ValueError(f"a member is a {type(member.backbone).__name__}; want an nn.Module")
            spec = member.backbone.spec
            if not -spec.depth <= member.layer < spec.depth:
                raise ValueError(
                    f"{spec.name} has no layer {member.layer}; want one from {-spec.depth} to {spec.depth - 1}"
                )
            if member.norm and not spec.norms([member.layer]):
                raise ValueError(f"{spec.name} has no final norm for layer {member.layer}; pass norm=False")
        if preprocess is None:
            own = cast(tuple[Preprocess, ...], tuple(member.backbone.preprocess for member in members))  # it checks
            preprocess = FusedPreprocess(own, own[0].image_size)
        if len(preprocess.parts) != len(members):
            raise ValueError(
                f"preprocess has {len(preprocess.parts)} parts for {len(members)} members; want one for each member"
            )
        self.members = nn.ModuleList([cast(nn.Module, member.backbone) for member in members])
        self.layers = tuple(member.layer % member.backbone.spec.depth for member in members)
        self.norms = tuple(member.norm for member in members)
        self.preprocess = preprocess
        each = {member.backbone.spec.in_chans for member in members} | {part.channels for part in preprocess.parts}
        if len(each) > 1:
            raise ValueError(f"the members and their transforms have {sorted(each)} channels; want one number for all")
        (own_channels,) = each
        self.channels = tuple(dict.fromkeys((own_channels, own_channels * len(members))))
        self.spec = _spec(name, members, preprocess)

    def forward(self, images: Images, asked: Asked | None = None) -> Any:
        """See `BackboneModule`. The blocks after a member's layer do not run.

        If every member has `norm=True`, the norms form the final norm, and `norm=False` leaves all of them out.
        Otherwise there is no final norm, `norm=True` raises `ValueError`, and each member keeps its own choice.
        Attention maps also raise `ValueError`, because each member attends among its own tokens.
        """
        asked = asked or self.last
        check_images(images, self.channels)
        if asked.part == "attention":
            raise ValueError(f"{self.spec.name} has no attention of its own; call a member's: members[i].attention")
        with any_size():
            norms = sorted({norm for _, norm in asked.wanted})
            if isinstance(images, Tensor):
                joined = [_join(parts) for parts in self._ask(self._pictures(images), norms)]
            else:  # each member runs all images at once; the results are joined image by image, on their own grids
                pictures = zip(*(self._pictures(image[None]) for image in images), strict=True)
                found = self._ask([[one[0] for one in of_member] for of_member in pictures], norms)
                joined = [
                    stack([_join([part.image(i) for part in parts]) for i in range(len(images))]) for parts in found
                ]
            return asked.answer({(0, norm): features for norm, features in zip(norms, joined, strict=True)})

    def _ask(self, pictures: Sequence[Images], norms: Sequence[bool]) -> list[tuple[Features, ...]]:
        """Return the features of every member for each of the norms."""
        each = [
            member.backbone.forward_layers(
                picture,
                [member.layer] * len(norms),
                norm=[norm if self.spec.has_norm else member.norm for norm in norms],
            )
            for member, picture in zip(self._members(), pictures, strict=True)
        ]
        return list(zip(*each, strict=True))

    def _pictures(self, images: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B c H W"]]:
        """Return the pictures of each member."""
        if images.shape[1] == self.spec.in_chans * len(self.members):
            return list(images.split(self.spec.in_chans, dim=1))
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
        in_chans=preprocess.parts[0].channels,
        settings=repr([(spec.name, layer, norm, spec.settings) for spec, layer, norm in parts]),
    )


def _join(parts: Sequence[Features]) -> Features:
    """Concatenate the members' features on the grid of the smallest stride."""
    finest = min((part.geometry for part in parts), key=lambda geometry: geometry.stride)
    patches = torch.cat([align(part, finest) for part in parts], dim=1)
    tokens = [part.cls for part in parts if part.cls is not None]
    cls = torch.cat(tokens, dim=1) if len(tokens) == len(parts) else None
    registers = patches.new_empty(patches.shape[0], 0, patches.shape[1])
    # Compilers cannot return a function that is the default of a field.
    return Features(cls, registers, patches, finest, pool_cls_or_mean)


def _renormalise(images: Float[Tensor, "B C H W"], old: Preprocess, new: Preprocess) -> Float[Tensor, "B C H W"]:
    """Convert images from one mean and std to another. These are Python numbers, so that no dtype rounds them."""
    channels = zip(images.unbind(1), old.mean, old.std, new.mean, new.std, strict=True)
    return torch.stack(
        [x * (std / to_std) + (mean - to_mean) / to_std for x, mean, std, to_mean, to_std in channels], 1
    )


# ---- by name ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FusedConfig:
    """The configuration of a fused backbone."""

    members: tuple[tuple[str, int, bool], ...]  # (name for `load_backbone`, layer, norm) of each
    image_size: tuple[int, int]  # (H, W)
    strategy: Strategy = "resize-naive"


def fuse(config: FusedConfig, backbones: Sequence[Backbone], name: str) -> FusedBackbone:
    """Join backbones as a configuration says. `backbones` are its members, in their order."""
    parts = zip(backbones, config.members, strict=True)
    members = [Member(backbone, layer, norm) for backbone, (_, layer, norm) in parts]
    own = cast(tuple[Preprocess, ...], tuple(backbone.preprocess for backbone in backbones))  # `FusedPreprocess` checks
    return FusedBackbone(members, FusedPreprocess(own, config.image_size, config.strategy), name)
