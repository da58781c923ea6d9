"""The head: what every head is, and what it reads of a backbone.

Axes: `B` batch, `D` width, `h w` patch grid, `H W` pixels.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from heads.options import Count, Layers, check, checked, hints_of
from heads.unread import Wanted
from vitbackbone import BackboneModule, BackboneSpec, Features, Geometry

# The four layers that "even4" takes of a backbone of some depths. DINOv2 takes other ones of its 24-block model than a
# quarter each, and its depth and segmentation heads were trained on them (facebookresearch/dinov2, hub/depthers.py).
EVEN4 = {24: (4, 11, 17, 23)}


def _even4(depth: int) -> tuple[int, ...]:
    return EVEN4.get(depth, tuple((i + 1) * depth // 4 - 1 for i in range(4)))


LAYERS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "last": lambda depth: (-1,),
    "penultimate": lambda depth: (-2,),
    "last4": lambda depth: (-4, -3, -2, -1),
    "even4": _even4,
}


@dataclass(frozen=True)
class Needs:
    """What a head reads of a backbone. Raises `ValueError` on values that cannot be."""

    layers: Sequence[int] | str = "last"  # block indices, negative from the end; or a name in `LAYERS`
    norm: bool = True  # whether the backbone's final norm is applied to each
    prefix: bool = False  # whether the CLS token is read
    grid_multiple: Count = 1  # what the height and width of the map must be divided by
    pooled: bool = True  # whether `features.pooled` is read: if not, no gradient is kept for the backbone's pooling

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given = check("Needs", hints_of(type(self).__init__) | {"layers": Layers}, given)
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(given["layers"]))
        object.__setattr__(self, "grid_multiple", given["grid_multiple"])

    def resolve(self, spec: BackboneSpec) -> tuple[int, ...]:
        """0-based indices of the layers. Raises `ValueError` if the backbone does not have them all, or if one is named
        twice."""
        layers = LAYERS[self.layers](spec.depth) if isinstance(self.layers, str) else tuple(self.layers)
        wanted = max(len(layers), -min(layers)) if isinstance(self.layers, str) else -min(layers)
        if wanted > spec.depth:
            raise ValueError(
                f"{spec.name} has {spec.depth} layers; a head that reads {self.layers!r} wants more, {wanted} at least"
            )
        indices = tuple(spec.indices(layers))
        if len(set(indices)) < len(indices):
            raise ValueError(f"layers={list(layers)} name a layer of {spec.name} twice; want each layer once")
        return indices


class Head(nn.Module):
    """What consumes features. A subclass takes a spec and its options, and defines `forward(*features)`, which is
    given the `Features` of each layer of `needs`, in that order. It never sees the backbone.

        class Mean(Head):
            def __init__(self, spec: BackboneSpec, num_classes: int) -> None:
                super().__init__(spec, Needs("last"))
                self.linear = nn.Linear(spec.dim, num_classes)

            def forward(self, features: Features) -> Tensor:
                return self.linear(features.tokens.mean(dim=1))

    The annotations of its options are checked before its constructor runs: `heads.options` has types with bounds.
    """

    name: str = ""  # by which `create_head` made it
    config: Mapping[str, Any] = {}  # the options it was given

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = checked(cls.__init__)  # type: ignore[method-assign]

    def __init__(self, spec: BackboneSpec, needs: Needs) -> None:
        super().__init__()
        self.spec = spec
        self.needs = needs
        self.layers = needs.resolve(spec)

    @property
    def used(self) -> frozenset[Wanted]:
        """Each layer of the backbone that the head runs or reads, and whether with the final norm."""
        return frozenset((layer, self.needs.norm) for layer in self.layers)

    def loss(self, targets: Any, *features: Features) -> Tensor:
        """What the head is trained by, given targets and the `Features` that its `forward` takes.

        Raises `ValueError`: a subclass defines it, if its training has one usual loss.
        """
        raise ValueError(f"{_called(self)} has no loss of its own; make one of its output, model(images)[name]")

    def bind(self, backbone: BackboneModule) -> None:
        """Called when the head is attached. For the rare head that runs blocks of the backbone itself (EoMT)."""


class DenseHead(Head):
    """A head whose output is a map at the size of the images: a subclass defines `maps`.

    The output is (B, K, H, W), the padding cropped away. Images of different sizes are run one by one, as batch norm
    and convolutions would mix their padding in, and their maps are filled up with zeros at the right and bottom.
    """

    @abstractmethod
    def maps(self, *features: Features) -> Float[Tensor, "B K h w"]:
        """The output on some grid that covers what the first of the feature maps covers, padding included."""

    def forward(self, *features: Features) -> Float[Tensor, "B K H W"]:
        geometry = features[0].geometry
        if len(set(geometry.sizes)) < 2:
            return enlarge(self.maps(*features), geometry)
        alone = [self(*(each.image(i) for each in features)) for i in range(len(geometry.sizes))]
        height, width = (max(side) for side in zip(*geometry.sizes, strict=True))
        return torch.cat([F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2])) for x in alone])


def enlarge(maps: Float[Tensor, "B K h w"], geometry: Geometry) -> Float[Tensor, "B K H W"]:
    """Maps of images of one size, padding included, to that size: bilinear, then the padding cropped away."""
    height, width = geometry.sizes[0]
    maps = F.interpolate(maps, size=geometry.padded_size, mode="bilinear", align_corners=False)
    return maps[:, :, :height, :width]


def _called(head: Head) -> str:
    return f"head {head.name!r}" if head.name else f"this {type(head).__name__}"
