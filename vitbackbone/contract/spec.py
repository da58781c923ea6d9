"""What a backbone tells about itself: enough for a head to size itself, and what computes its features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Norm = bool | Sequence[bool]  # whether the final norm is applied: to all layers asked, or to each


Wanted = tuple[int, bool]  # a layer, 0-based, and whether the final norm is applied


@dataclass(frozen=True)
class BackboneSpec:
    """What a head may know of a backbone: enough to size itself."""

    name: str
    dim: int  # D
    depth: int  # number of layers that `forward_layers` can return
    num_heads: int  # of the last layer; 0 where there is no attention
    stride: int  # pixels from one patch to the next
    num_registers: int  # R
    has_cls: bool
    has_norm: bool  # whether there is a final norm to apply: `norm=True` raises without one
    image_size: tuple[int, int]  # (H, W) that the weights were trained for
    settings: str = ""  # all else that decides the features, weights and preprocessing apart, as text to compare
    pooled_dim: int = 0  # width of `pooled`; 0 means `dim`
    dims: tuple[int, ...] = ()  # D of each layer; () means `dim` for all. `dim` and `stride` are the last layer's
    strides: tuple[int, ...] = ()  # of each layer
    pooled_dims: tuple[int, ...] = ()  # width of each layer's `pooled`; () means `pooled_dim` for all

    def __post_init__(self) -> None:
        object.__setattr__(self, "pooled_dim", self.pooled_dim or self.dim)
        widths = {"dims": self.dim, "strides": self.stride, "pooled_dims": self.pooled_dim}
        for name, last in widths.items():
            each = getattr(self, name) or (last,) * self.depth
            if len(each) != self.depth or each[-1] != last:
                raise ValueError(
                    f"BackboneSpec: {name}={each}; want one for each of {self.depth} layers, the last {last}"
                )
            object.__setattr__(self, name, each)

    def indices(self, layers: Sequence[int]) -> list[int]:
        """0-based indices of `layers`, negative ones counted from the end. Raises `ValueError` on one out of range."""
        wrong = [i for i in layers if not -self.depth <= i < self.depth]
        if wrong or not layers:
            last = self.depth - 1
            raise ValueError(f"layers={list(layers)}: want block indices from {-self.depth} to {last}, at least one")
        return [i % self.depth for i in layers]

    def norms(self, layers: Sequence[int]) -> bool:
        """Whether there is a final norm that fits each of the layers: a Swin's fits the last alone."""
        return self.has_norm and all(self.dims[layer] == self.dim for layer in self.indices(layers))

    def wanted(self, layers: Sequence[int], norm: Norm) -> list[Wanted]:
        """Each layer asked with its norm. Raises `ValueError` on a layer out of range and on a norm that is not there,
        or does not fit the layer."""
        indices = self.indices(layers)
        norms = [norm] * len(indices) if isinstance(norm, bool) else list(norm)
        if len(norms) != len(indices):
            raise ValueError(f"norm={norms}, for {len(indices)} layers; want one for each, or one for all")
        normed = [layer for layer, asked in zip(indices, norms, strict=True) if asked]
        if normed and not self.has_norm:
            raise ValueError(f"{self.name} has no final norm to apply; pass norm=False")
        if normed and not self.norms(normed):
            raise ValueError(
                f"the final norm of {self.name} fits its last layer {self.depth - 1} alone; pass norm=False"
            )
        return list(zip(indices, norms, strict=True))

    @property
    def num_prefix(self) -> int:
        return int(self.has_cls) + self.num_registers


Precision = Literal["fp32", "bf16", "int8"]


Engine = Literal["native", "openvino"]


@dataclass(frozen=True)
class Runtime:
    """What computes the features. Backbones of equal weights, `spec`, precision and engine have the same features to
    1e-5, or to what the precision allows; if the path is the same too, and the sample that `optimize` had, to the bit
    on machines of one kind."""

    precision: Precision = "fp32"
    engine: Engine = "native"
    route: str = "torch as it is"  # name of the route that computes linear layers and attention


@dataclass(frozen=True)
class Fidelity:
    """How close the features of an optimised backbone are to those of the plain one, of a sample of images."""

    cls_cosine: float | None  # the lowest of an image; None where there is no CLS
    patches_cosine: float  # the mean over the patches of an image, the lowest of an image
    cls_error: float | None  # max |a - b| / max |b|
    patches_error: float

    @property
    def cosine(self) -> float:
        """The lower of the two."""
        return min(self.patches_cosine, 1.0 if self.cls_cosine is None else self.cls_cosine)
