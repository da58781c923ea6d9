"""The contract: what a backbone takes, what it returns, and what it tells about itself.

Axes: `B` batch, `R` register tokens, `D` width, `h w` patch grid, `N` tokens, `H W` pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.preprocess import ImageTransform, View
from vitbackbone.repeated import Repeated, one_value
from vitbackbone.tracing import numbers

Images = Tensor | Sequence[Tensor]  # (B, 3, H, W) float, or a list of (3, Hi, Wi)
Norm = bool | Sequence[bool]  # whether the final norm is applied: to all layers asked, or to each
Wanted = tuple[int, bool]  # a layer, 0-based, and whether the final norm is applied


@dataclass(frozen=True)
class Geometry:
    """Where the patches of a batch lie.

    Pixels are continuous: (0, 0) is the top-left corner of the image and (H, W) the bottom-right one. Without
    `views`, source pixels are the pixels handed to the backbone; with them, those of the photo, before resize and
    crop and after its EXIF orientation was applied.

    Where all images have one size, `sizes` and what follows from it are `Repeated`: equal to a tuple with an entry for
    each image, but not made before it is read, so that a traced graph takes any batch.
    """

    sizes: Sequence[tuple[int, int]]  # (H, W) of each image as handed to the backbone, before padding
    stride: int  # pixels from one patch to the next
    views: tuple[View, ...] | None = None  # how each image was cut from its photo

    @classmethod
    def of(cls, images: Images, stride: int) -> "Geometry":
        """The geometry of a batch (B, C, H, W), or of a list of images (C, Hi, Wi)."""
        if isinstance(images, Tensor):
            return cls(Repeated((images.shape[2], images.shape[3]), images.shape[0]), stride)
        return cls(tuple((image.shape[1], image.shape[2]) for image in images), stride)

    @property
    def one_size(self) -> bool:
        """Whether all images have the same size."""
        return one_value(self.sizes)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) that holds each of the images: where they have one size, that size."""
        return _largest(self.sizes)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the feature map: enough patches for the tallest and the widest image."""
        return _largest(self.grids)

    @property
    def grids(self) -> Sequence[tuple[int, int]]:
        """(h, w) of each image's own patches."""
        return self._of_each(lambda height, width: ((height - 1) // self.stride + 1, (width - 1) // self.stride + 1))

    @property
    def padded_size(self) -> tuple[int, int]:
        """(H, W) that the feature map covers, padding at the bottom and right included."""
        return self.grid[0] * self.stride, self.grid[1] * self.stride

    @property
    def padding(self) -> Sequence[tuple[int, int]]:
        """Pixels added to each image at its (bottom, right)."""
        height, width = self.padded_size
        return self._of_each(lambda h, w: (height - h, width - w))

    def through(self, views: Sequence[View]) -> "Geometry":
        """The same geometry in the pixels of the photos, given the `View` of each (`Preprocess.view`).

        Raises `ValueError` if a view made another size than the backbone was given.
        """
        if tuple(view.size for view in views) != self.sizes:
            raise ValueError(f"the views have sizes {[v.size for v in views]}, the backbone was given {self.sizes}")
        return replace(self, views=tuple(views))

    def image(self, index: int) -> "Geometry":
        """The geometry of one image of the batch."""
        return replace(self, sizes=Repeated(self.sizes[index], 1), views=(self.views[index],) if self.views else None)

    def box(self, image: int, row: int, column: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of a patch in source pixels. The part of it in the padding, or in the border of a
        letterbox, lies outside the image. Raises `IndexError` if the image has no such patch."""
        self._check_patch(image, row, column)
        left, top = self._to_source(image, column * self.stride, row * self.stride)
        right, bottom = self._to_source(image, (column + 1) * self.stride, (row + 1) * self.stride)
        return left, top, right, bottom

    def patch(self, image: int, x: float, y: float) -> tuple[int, int]:
        """(row, column) of the patch that shows the source pixel (x, y). Raises `IndexError` where none does: outside
        the image, or cropped away."""
        column, row = self._from_source(image, x, y)
        height, width = self.sizes[image]
        source = self.views[image].source if self.views else (height, width)
        inside = 0 <= x < source[1] and 0 <= y < source[0]  # the border of a letterbox is seen, but is no photo
        if not (inside and 0 <= column < width and 0 <= row < height):
            raise IndexError(f"pixel (x={x}, y={y}) is not within what the backbone saw of image {image}")
        return int(row // self.stride), int(column // self.stride)

    def _of_each(self, rule: Callable[[int, int], tuple[int, int]]) -> Sequence[tuple[int, int]]:
        """What a rule makes of the size of each image."""
        if isinstance(self.sizes, Repeated):
            return Repeated(rule(*self.sizes.value), self.sizes.times)
        return tuple(rule(height, width) for height, width in self.sizes)

    def _check_patch(self, image: int, row: int, column: int) -> None:
        h, w = self.grids[image]
        if not (0 <= row < h and 0 <= column < w):
            raise IndexError(f"image {image} has a grid of {h} x {w} patches, none at row {row}, column {column}")

    def _to_source(self, image: int, x: float, y: float) -> tuple[float, float]:
        return self.views[image].to_source(x, y) if self.views else (x, y)

    def _from_source(self, image: int, x: float, y: float) -> tuple[float, float]:
        return self.views[image].from_source(x, y) if self.views else (x, y)


def _largest(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    if isinstance(pairs, Repeated):
        return pairs.value
    return max((a for a, _ in pairs), default=0), max((b for _, b in pairs), default=0)


def pool_cls(features: "Features") -> Float[Tensor, "B D"]:
    """The CLS token. Raises `ValueError` if there is none."""
    if features.cls is None:
        raise ValueError("this backbone has no CLS token; pool its patches instead")
    return features.cls


def pool_mean(features: "Features") -> Float[Tensor, "B D"]:
    """The mean of the patches that show the image. The sum is made in float32 at least: half precision overflows."""
    patches, wide = features.patches, torch.promote_types(features.patches.dtype, torch.float32)
    if one_value(features.geometry.grids):
        return patches.mean(dim=(2, 3), dtype=wide).to(patches.dtype)
    valid = features.valid[:, None]
    total = (patches * valid).sum(dim=(2, 3), dtype=wide)
    return (total / valid.sum(dim=(2, 3))).to(patches.dtype)


def pool_cls_or_mean(features: "Features") -> Float[Tensor, "B D"]:
    """CLS where there is one, else the mean of the patches."""
    return (pool_mean if features.cls is None else pool_cls)(features)


@dataclass(frozen=True, eq=False)
class Pooled:
    """A pooling that was done already."""

    vectors: Float[Tensor, "B P"]

    def __call__(self, features: "Features") -> Float[Tensor, "B P"]:
        return self.vectors


class _Shapes:
    """A record whose `repr` shows the shapes of its tensors, not their numbers."""

    def __repr__(self) -> str:
        shown = {each.name: getattr(self, each.name) for each in fields(cast(Any, self)) if each.repr}
        return f"{type(self).__name__}({', '.join(f'{name}={_shape(value)}' for name, value in shown.items())})"


def _shape(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    kind = str(value.dtype).removeprefix("torch.")
    return f"{kind}{list(value.shape)}" + ("" if value.device.type == "cpu" else f" on {value.device}")


@dataclass(frozen=True, eq=False, repr=False)
class Features(_Shapes):
    """What a backbone returns, of one layer, for every family alike."""

    cls: Float[Tensor, "B D"] | None  # None where the family has no CLS token
    registers: Float[Tensor, "B R D"]  # prefix tokens that are neither CLS nor patch, in the checkpoint's order
    patches: Float[Tensor, "B D h w"]  # feature map, row-major over the image
    geometry: Geometry
    # The checkpoint's own pooling.
    pool: Callable[["Features"], Float[Tensor, "B P"]] = field(default=pool_cls_or_mean, repr=False)

    @property
    def tokens(self) -> Float[Tensor, "B N D"]:
        """The patches as a sequence, (B, h*w, D), row-major."""
        return rearrange(self.patches, "B D h w -> B (h w) D")

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the feature map."""
        return self.geometry.grid

    @property
    def pooled(self) -> Float[Tensor, "B P"]:
        """One vector an image, by the checkpoint's own pooling. P is D, but for projections and necks."""
        # What was made in inference mode stays there, wherever it is pooled: autograd cannot save it.
        with torch.inference_mode() if self.patches.is_inference() else nullcontext():
            if one_value(self.geometry.grids):
                return self.pool(self)
            return torch.cat([self.pool(self.image(i)) for i in range(len(self.patches))])

    def image(self, index: int) -> "Features":
        """One image of the batch alone, (1, …), its map cut to its own grid."""
        index = range(len(self.patches))[index]
        one = slice(index, index + 1)
        geometry = self.geometry.image(index)
        h, w = geometry.grid
        cls = None if self.cls is None else self.cls[one]
        pool = Pooled(self.pool.vectors[one]) if isinstance(self.pool, Pooled) else self.pool
        return Features(cls, self.registers[one], self.patches[one, :, :h, :w], geometry, pool)

    @property
    def valid(self) -> Bool[Tensor, "B h w"]:
        """True where a patch shows at least one pixel of its image, False where it shows padding alone."""
        device = self.patches.device
        if one_value(self.geometry.grids):
            return torch.ones(self.patches.shape[0], *self.grid, dtype=torch.bool, device=device)
        h, w = (torch.tensor(axis, device=device).view(-1, 1, 1) for axis in _columns(self.geometry.grids))
        rows = torch.arange(self.grid[0], device=device).view(1, -1, 1)
        columns = torch.arange(self.grid[1], device=device).view(1, 1, -1)
        return (rows < h) & (columns < w)


@dataclass(frozen=True, eq=False, repr=False)
class Prefix(_Shapes):
    """What `Features` hold of the whole image, of one layer: all but the patches."""

    cls: Float[Tensor, "B D"] | None  # None where the family has no CLS token
    registers: Float[Tensor, "B R D"]  # in the checkpoint's order
    pooled: Float[Tensor, "B P"]  # by the checkpoint's own pooling

    @classmethod
    def of(cls, features: Features) -> "Prefix":
        return Prefix(features.cls, features.registers, features.pooled)


def _columns(pairs: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [a for a, _ in pairs], [b for _, b in pairs]


def stack(alone: Sequence[Features]) -> Features:
    """One `Features` of images that were run one by one, their maps padded with zeros to the largest grid."""
    first = alone[0]
    geometry = Geometry(tuple(size for f in alone for size in f.geometry.sizes), first.geometry.stride)
    h, w = geometry.grid
    patches = torch.cat([F.pad(f.patches, (0, w - f.grid[1], 0, h - f.grid[0])) for f in alone])
    cls = None if first.cls is None else torch.cat([pool_cls(f) for f in alone])
    return Features(cls, torch.cat([f.registers for f in alone]), patches, geometry, first.pool)


@dataclass(frozen=True, eq=False, repr=False)
class Attention(_Shapes):
    """The attention maps of one block. Tokens are CLS (if any), then the registers, then the patches, row-major."""

    # Row i: how much token i takes from each token. Rows sum to 1, but for what a window's padding takes.
    weights: Float[Tensor, "B heads N N"]
    num_prefix: int  # CLS and registers
    grid: tuple[int, int]  # (h, w) of the patches

    @property
    def cls_to_patches(self) -> Float[Tensor, "B heads h w"]:
        """What the first token (CLS, where there is one) takes from each patch, as maps.

        Raises `ValueError` where the backbone has no prefix token.
        """
        if not self.num_prefix:
            raise ValueError("this backbone has no CLS token to look from; take a patch's row of `weights` instead")
        return rearrange(self.weights[:, :, 0, self.num_prefix :], "B heads (h w) -> B heads h w", h=self.grid[0])


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "pooled_dim", self.pooled_dim or self.dim)
        for name, last in {"dims": self.dim, "strides": self.stride}.items():
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
    path: str = "torch as it is"  # of `paths.PATHS`, by its name


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


@runtime_checkable
class Backbone(Protocol):
    """Anything that turns images into `Features`.

    `images` is a float tensor (B, 3, H, W), normalised as `preprocess` does, or a list of (3, Hi, Wi) of different
    sizes; a `FusedBackbone` of n also takes the 3n channels that its `preprocess` makes. Anything else raises a
    `ValueError` that says what was given and what is wanted.
    """

    @property
    def spec(self) -> BackboneSpec: ...

    @property
    def preprocess(self) -> ImageTransform:
        """Image file to normalised tensor, as this very checkpoint wants it."""
        ...

    def __call__(self, images: Images) -> Features:
        """The last layer, with the checkpoint's own final norm."""
        ...

    def forward_layers(self, images: Images, layers: Sequence[int], norm: Norm = True) -> tuple[Features, ...]:
        """One `Features` per entry of `layers`: 0-based, negative from the end, in the order asked, duplicates kept;
        no block after the deepest is run. `norm=True` applies the checkpoint's final norm, and raises `ValueError`
        where it has none; a list has one for each layer."""
        ...

    def attention(self, images: Images, layers: Sequence[int]) -> tuple[Attention, ...]:
        """The attention maps of the layers asked, for images of one size; a list of several raises `ValueError`."""
        ...


@dataclass(frozen=True)
class Asked:
    """What one call of a backbone is to give: each of the layers `wanted`, in their order."""

    wanted: tuple[Wanted, ...]
    part: Literal["features", "prefix", "attention"] = "features"
    single: bool = False  # the one layer itself, not a tuple of it

    @property
    def deepest(self) -> int:
        return max(layer for layer, _ in self.wanted)

    def answer(self, found: Mapping[Wanted, Any]) -> Any:
        """What the call returns, given the `Features` of each layer, or what is asked of it."""
        results = tuple(self._finished(found[each]) for each in self.wanted)
        return results[0] if self.single else results

    def _finished(self, result: Any) -> Any:
        if isinstance(result, Features) and self.part == "prefix":
            return Prefix.of(result)
        if isinstance(result, Features) and torch.compiler.is_exporting():
            return replace(result, pool=Pooled(result.pooled))  # a graph holds no function to call later
        return result


class BackboneModule(nn.Module, ABC):
    """A `Backbone` that is a module of torch: what `load_backbone` returns.

    A subclass sets `spec` and defines `forward`. All methods call the module itself, so that whatever acts on a call of
    a module acts on each of them: hooks, FSDP, a compiler.
    """

    spec: BackboneSpec
    preprocess: ImageTransform
    channels: tuple[int, ...] = (3,)  # how many channels images may have
    frozen: bool = False  # whether it stays in eval mode, whatever `train` is told
    runtime: Runtime = Runtime()
    fidelity: Fidelity | None = None  # of one that `optimize` made

    @abstractmethod
    def forward(self, images: Images, asked: Asked | None = None) -> Any:
        """The `Features` of the last layer, with the final norm if there is one.

        `asked`: what the other methods want instead; it is theirs, and `asked.answer` makes what is returned.
        """

    def forward_layers(self, images: Images, layers: Sequence[int], norm: Norm = True) -> tuple[Features, ...]:
        """See `Backbone`."""
        check_images(images, self.channels)
        return self(images, Asked(tuple(self.spec.wanted(layers, norm))))

    def forward_prefix(self, images: Images, layers: Sequence[int], norm: Norm = True) -> tuple[Prefix, ...]:
        """What `forward_layers` returns, but for the patches. Nothing is done for patches that is not needed: a ViT
        that pools its CLS token saves most of the deepest block. Others run in full.

        Raises `ValueError` as `forward_layers` does.
        """
        if type(self).forward_layers is not BackboneModule.forward_layers:  # a subclass's own way counts here too
            return tuple(Prefix.of(features) for features in self.forward_layers(images, layers, norm))
        check_images(images, self.channels)
        return self(images, Asked(tuple(self.spec.wanted(layers, norm)), "prefix"))

    def attention(self, images: Images, layers: Sequence[int]) -> tuple[Attention, ...]:
        """See `Backbone`. The maps are recomputed from q and k; the forward keeps its fused kernel."""
        check_images(images, self.channels)
        return self(images, Asked(tuple((layer, False) for layer in self.spec.indices(layers)), "attention"))

    @property
    def last(self) -> Asked:
        """The last layer, with the final norm if there is one."""
        return Asked(((self.spec.depth - 1, self.spec.has_norm),), single=True)

    @property
    def has_norm(self) -> bool:
        """Whether there is a final norm to apply."""
        return self.spec.has_norm

    def train(self, mode: bool = True) -> "BackboneModule":
        """As in torch; a frozen backbone stays in eval mode."""
        return super().train(mode and not self.frozen)


def one_by_one(run: Callable[[Tensor], Mapping[Wanted, Features]], images: Images) -> Mapping[Wanted, Features]:
    """What `run` makes of a batch; of a list of images, what it makes of each, stacked."""
    if isinstance(images, Tensor):
        return run(images)
    alone = [run(image[None]) for image in images]
    return {each: stack([outputs[each] for outputs in alone]) for each in alone[0]}


def check_images(images: Images, channels: Sequence[int] = (3,)) -> None:
    """Raises `ValueError` unless `images` is (B, C, H, W) float or a non-empty list of (C, H, W) float tensors, with C
    one of `channels`."""
    c = " or ".join(map(str, channels))
    wanted = f"want a float tensor (B, {c}, H, W), normalised, or a list of ({c}, H, W) tensors of any sizes"
    if isinstance(images, Tensor):
        batch: Sequence[Tensor] = [images]
        rank = 4
    elif isinstance(images, list | tuple) and images and all(isinstance(image, Tensor) for image in images):
        batch, rank = images, 3
    else:
        raise ValueError(f"images is {_describe(images)}; {wanted}")
    for image in batch:
        if image.ndim != rank or image.shape[-3] not in channels or 0 in filter(numbers, image.shape):
            raise ValueError(f"images has shape {tuple(image.shape)}; {wanted}")
        if not image.is_floating_point():
            raise ValueError(f"images is {image.dtype}; {wanted}. `backbone.preprocess(image)` makes one from a photo")


def _describe(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {sorted({type(item).__name__ for item in value}) or 'nothing'}"
    return f"a {type(value).__name__}"
