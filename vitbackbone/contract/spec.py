"""The description of a backbone: its shapes, its runtime, and the fidelity of an optimised one."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal

Norm = bool | Sequence[bool]  # whether to apply the final norm: one value for all requested layers, or one for each
Wanted = tuple[int, bool]  # a 0-based layer, and whether to apply the final norm to it


def describe_settings(value: object) -> str:
    """Return a configuration as text, without the fields that have their defaults.

    A field that a later version adds leaves the text, and so the fingerprint, of an existing configuration as it was.
    """
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    given = ", ".join(f"{name}={describe_settings(each)}" for name, each in changed_fields(value).items())
    return f"{type(value).__name__}({given})"


def changed_fields(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that have no default, or another value than their default."""
    values = {field.name: (field.default, getattr(record, field.name)) for field in fields(record)}
    return {name: value for name, (default, value) in values.items() if default is MISSING or value != default}


@dataclass(frozen=True)
class BackboneSpec:
    """The description of a backbone from which a head takes its sizes.

    Raises `ValueError` if `dims`, `strides` or `pooled_dims` do not hold one value for each layer, or if their last
    value differs from `dim`, `stride` or `pooled_dim`.
    """

    name: str
    dim: int  # D of the last layer
    depth: int  # number of layers that `forward_layers` can return
    num_heads: int  # attention heads of the last layer; 0 without attention
    stride: int  # pixels from one patch to the next in the last layer
    num_registers: int  # R
    has_cls: bool
    has_norm: bool  # whether the backbone has a final norm; without one, `norm=True` raises
    image_size: tuple[int, int]  # (H, W) that the weights were trained at
    settings: str = ""  # every other setting that affects the features, as text to compare
    pooled_dim: int = 0  # width of `pooled`; 0 means `dim`
    dims: tuple[int, ...] = ()  # D of each layer; () means `dim` for all
    strides: tuple[int, ...] = ()  # stride of each layer; () means `stride` for all
    pooled_dims: tuple[int, ...] = ()  # width of each layer's `pooled`; () means `pooled_dim` for all
    in_chans: int = 3  # channels of the images
    tubelet: int = 0  # frames of clips in one step of time; 0: the backbone takes only images

    def __post_init__(self) -> None:
        object.__setattr__(self, "pooled_dim", self.pooled_dim or self.dim)
        widths = {"dims": self.dim, "strides": self.stride, "pooled_dims": self.pooled_dim}
        for name, last in widths.items():
            each = getattr(self, name) or (last,) * self.depth
            if len(each) != self.depth or each[-1] != last:
                raise ValueError(
                    f"BackboneSpec: {name}={each}; want {self.depth} values, one for each layer, and {last} as the last"
                )
            object.__setattr__(self, name, each)

    def indices(self, layers: Sequence[int]) -> list[int]:
        """Return 0-based indices of `layers`; negative ones count from the end.

        Raises `ValueError` if `layers` is empty or an index is out of range.
        """
        wrong = [i for i in layers if not -self.depth <= i < self.depth]
        if wrong or not layers:
            last = self.depth - 1
            raise ValueError(f"layers={list(layers)}: want block indices from {-self.depth} to {last}, at least one")
        return [i % self.depth for i in layers]

    def norms(self, layers: Sequence[int]) -> bool:
        """Return whether the final norm exists and fits each of the layers.

        The norm fits every layer of width `dim`. In a Swin, that is only the last layer.
        """
        return self.has_norm and all(self.dims[layer] == self.dim for layer in self.indices(layers))

    def wanted(self, layers: Sequence[int], norm: Norm) -> list[Wanted]:
        """Return each requested layer with its norm.

        Raises `ValueError` if a layer is out of range, or if a requested norm is missing or does not fit its layer.
        """
        indices = self.indices(layers)
        norms = [norm] * len(indices) if isinstance(norm, bool) else list(norm)
        if len(norms) != len(indices):
            raise ValueError(
                f"norm={norms} has {len(norms)} values for {len(indices)} layers; want one for each layer, or one bool"
            )
        normed = [layer for layer, asked in zip(indices, norms, strict=True) if asked]
        if normed and not self.has_norm:
            raise ValueError(f"{self.name} has no final norm to apply; pass norm=False")
        if normed and not self.norms(normed):
            raise ValueError(
                f"the final norm of {self.name} fits only its last layer, {self.depth - 1}; want norm=False elsewhere"
            )
        return list(zip(indices, norms, strict=True))

    @property
    def num_prefix(self) -> int:
        """Number of tokens in front of the patches: CLS and registers."""
        return int(self.has_cls) + self.num_registers


Precision = Literal["fp32", "bf16", "int8"]
Engine = Literal["native", "openvino"]


@dataclass(frozen=True)
class Runtime:
    """The runtime that computes the features.

    Backbones with the same weights, `spec`, precision and engine give the same features to 1e-5, or to what the
    precision allows. If they also share the route and the sample that `optimize` was given, their features are equal to
    the bit on machines of one kind.
    """

    precision: Precision = "fp32"
    engine: Engine = "native"
    route: str = "torch as it is"  # name of the route that computes linear layers and attention


@dataclass(frozen=True)
class Fidelity:
    """Agreement of an optimised backbone with the plain one on a sample of images."""

    cls_cosine: float | None  # the lowest over the images; None without a CLS token
    patches_cosine: float  # mean over the patches of each image, the lowest over the images
    cls_error: float | None  # max |a - b| / max |b|
    patches_error: float

    @property
    def cosine(self) -> float:
        """The lower of the two cosines."""
        return min(self.patches_cosine, 1.0 if self.cls_cosine is None else self.cls_cosine)
