"""The `Backbone` protocol, and `BackboneModule`, its base class for modules of torch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vitbackbone.contract.features import Attention, Features, Pooled, Prefix, stack
from vitbackbone.contract.geometry import Images
from vitbackbone.contract.spec import BackboneSpec, Fidelity, Norm, Runtime, Wanted
from vitbackbone.contract.tracing import numbers
from vitbackbone.images import ImageTransform


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
