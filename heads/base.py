"""The base classes of heads, and the record of what a head reads of a backbone.

Axes: `B` batch, `D` width, `h w` patch grid, `H W` pixels.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from heads.options import Count, Layers, check, checked, hints_of
from heads.unread import Wanted
from vitbackbone import BackboneModule, BackboneSpec, Features, Geometry, stack_maps

# The layers of "even4" at depths that do not follow the rule of quarters. DINOv2 trained the depth and segmentation
# heads of its 24-block model on these four layers (facebookresearch/dinov2, hub/depthers.py).
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
    """The parts of a backbone's features that a head reads. Raises `ValueError` on invalid values."""

    layers: Sequence[int] | str = "last"  # block indices, negative from the end; or a name in `LAYERS`
    norm: bool = True  # whether the backbone's final norm is applied to each layer
    prefix: bool = False  # whether the CLS token is read
    grid_multiple: Count = 1  # the height and width of the map must be multiples of this
    pooled: bool = True  # whether `features.pooled` is read; if not, the backbone's pooling gets no gradient

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given = check("Needs", hints_of(type(self).__init__) | {"layers": Layers}, given)
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(given["layers"]))
        object.__setattr__(self, "grid_multiple", given["grid_multiple"])

    def resolve(self, spec: BackboneSpec) -> tuple[int, ...]:
        """Return the 0-based indices of the layers.

        Raises `ValueError` if the backbone lacks one of them, or if a layer is named twice.
        """
        layers = LAYERS[self.layers](spec.depth) if isinstance(self.layers, str) else tuple(self.layers)
        wanted = max(len(layers), -min(layers)) if isinstance(self.layers, str) else -min(layers)
        if wanted > spec.depth:
            raise ValueError(
                f"{spec.name} has {spec.depth} layers, and a head that reads {self.layers!r} needs at least {wanted}; "
                f"want layers from {-spec.depth} to {spec.depth - 1}, or a deeper backbone"
            )
        indices = tuple(spec.indices(layers))
        if len(set(indices)) < len(indices):
            raise ValueError(f"layers={list(layers)} name a layer of {spec.name} twice; want each layer once")
        return indices


class Head(nn.Module):
    """A module that turns the features of a backbone into an output.

    A subclass takes a spec and its options, and defines `forward(*features)`. `forward` gets the `Features` of each
    layer of `needs`, in that order. It never sees the backbone.

        class Mean(Head):
            def __init__(self, spec: BackboneSpec, num_classes: int) -> None:
                super().__init__(spec, Needs("last"))
                self.linear = nn.Linear(spec.dim, num_classes)

            def forward(self, features: Features) -> Tensor:
                return self.linear(features.tokens.mean(dim=1))

    Options are checked against their annotations before the constructor runs. `heads.options` has types with bounds.
    """

    name: str = ""  # the name that `create_head` was given
    config: Mapping[str, Any] = {}  # the options that `create_head` was given

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
        """The layers that the head runs or reads, each with whether the final norm is applied."""
        return frozenset((layer, self.needs.norm) for layer in self.layers)

    def loss(self, targets: Any, *features: Features) -> Tensor:
        """Return the training loss, given targets and the `Features` that `forward` takes.

        Raises `ValueError` unless a subclass defines it. A subclass should, if there is one usual loss.
        """
        called = f"head {self.name!r}" if self.name else f"this {type(self).__name__}"
        raise ValueError(f"{called} has no loss of its own; compute one from its output, model(images)[name]")

    def bind(self, backbone: BackboneModule) -> None:
        """Take the backbone that the head is attached to. Only a head that runs blocks itself needs it (EoMT)."""


class DenseHead(Head):
    """A head whose output is a map at the size of the images. A subclass defines `maps`.

    The output is (B, K, H, W), with the padding cropped away. Images of different sizes are run one by one, because
    batch norm and convolutions would mix their padding in. Their maps are padded with zeros at the right and bottom.
    """

    @abstractmethod
    def maps(self, *features: Features) -> Float[Tensor, "B K h w"]:
        """Return the output on any grid that covers the same pixels as the first feature map, padding included."""

    def forward(self, *features: Features) -> Float[Tensor, "B K H W"]:
        geometry = features[0].geometry
        if geometry.one_size:
            return enlarge(self.maps(*features), geometry)
        return stack_maps([self(*(each.image(i) for each in features)) for i in range(len(geometry.sizes))])


def enlarge(maps: Float[Tensor, "B K h w"], geometry: Geometry) -> Float[Tensor, "B K H W"]:
    """Resize maps to the images' size by bilinear interpolation, then crop the padding away. All images have one
    size."""
    height, width = geometry.size
    maps = F.interpolate(maps, size=geometry.padded_size, mode="bilinear", align_corners=False)
    return maps[:, :, :height, :width]
