"""The `Backbone` protocol, and `BackboneModule`, its base class for torch modules."""

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

    `images` is a float tensor (B, 3, H, W), normalised as `preprocess` does, or a list of tensors (3, Hi, Wi) of any
    sizes. A `FusedBackbone` of n members also takes the 3n channels that its `preprocess` returns. If `spec.tubelet` is
    above 0, it also takes clips (B, T, 3, H, W) of any number of frames. Anything else raises `ValueError`.
    """

    @property
    def spec(self) -> BackboneSpec: ...

    @property
    def preprocess(self) -> ImageTransform:
        """The checkpoint's own transform, from an image file to a normalised tensor."""
        ...

    def __call__(self, images: Images) -> Features:
        """Return the last layer, with the checkpoint's own final norm if it has one."""
        ...

    def forward_layers(self, images: Images, layers: Sequence[int], norm: Norm = True) -> tuple[Features, ...]:
        """Return one `Features` for each entry of `layers`, in the given order.

        `layers`: 0-based indices; negative ones count from the end, and duplicates are kept. Blocks after the deepest
        layer do not run.
        `norm`: whether to apply the checkpoint's final norm, for all layers or as a list with one value a layer.
        Raises `ValueError` if a layer is out of range, or if a requested norm is missing or does not fit its layer.
        """
        ...

    def attention(self, images: Images, layers: Sequence[int]) -> tuple[Attention, ...]:
        """Return the attention maps of the requested layers.

        Raises `ValueError` for a list of images, and for a network that has no attention over the whole image.
        """
        ...


@dataclass(frozen=True)
class Asked:
    """The request of one call: the `wanted` layers in their order, and the part of each that the call returns."""

    wanted: tuple[Wanted, ...]
    part: Literal["features", "prefix", "attention"] = "features"
    single: bool = False  # return the only layer itself, and no tuple

    @property
    def deepest(self) -> int:
        """The deepest layer that must run."""
        return max(layer for layer, _ in self.wanted)

    def answer(self, found: Mapping[Wanted, Any]) -> Any:
        """Return the result of the call from the `Features`, `Prefix` or `Attention` of each wanted layer."""
        results = tuple(self._finished(found[each]) for each in self.wanted)
        return results[0] if self.single else results

    def _finished(self, result: Any) -> Any:
        if isinstance(result, Features) and self.part == "prefix":
            return Prefix.of(result)
        if isinstance(result, Features) and torch.compiler.is_exporting():
            return replace(result, pool=Pooled(result.pooled))  # an exported graph holds no functions
        return result


class BackboneModule(nn.Module, ABC):
    """A `Backbone` that is a torch module. `load_backbone` returns one.

    A subclass sets `spec` and defines `forward`. Every method calls the module itself, so that hooks, FSDP and
    compilers see each method as they see a call of the module.
    """

    spec: BackboneSpec
    preprocess: ImageTransform
    channels: tuple[int, ...] = (3,)  # numbers of channels that images may have
    frozen: bool = False  # whether it stays in eval mode, even after `train()`
    runtime: Runtime = Runtime()
    fidelity: Fidelity | None = None  # agreement with the plain backbone, if `optimize` made this one

    @abstractmethod
    def forward(self, images: Images, asked: Asked | None = None) -> Any:
        """Return the `Features` of the last layer, with the final norm if there is one.

        `asked`: the request of the other methods, for their own use. A subclass returns `asked.answer(found)`.
        """

    def forward_layers(self, images: Images, layers: Sequence[int], norm: Norm = True) -> tuple[Features, ...]:
        """See `Backbone`."""
        check_images(images, self.channels, self.spec.tubelet > 0)
        return self(images, Asked(tuple(self.spec.wanted(layers, norm))))

    def forward_prefix(self, images: Images, layers: Sequence[int], norm: Norm = True) -> tuple[Prefix, ...]:
        """Return the CLS token, the registers and the pooled vector of each layer, without the patches.

        A ViT that pools its CLS token or its prefix tokens skips the patches in the deepest block, which saves most of
        that block. Other networks run in full. Arguments and errors are the same as for `forward_layers`.
        """
        if type(self).forward_layers is not BackboneModule.forward_layers:  # a subclass has its own method
            return tuple(Prefix.of(features) for features in self.forward_layers(images, layers, norm))
        check_images(images, self.channels, self.spec.tubelet > 0)
        return self(images, Asked(tuple(self.spec.wanted(layers, norm)), "prefix"))

    def attention(self, images: Images, layers: Sequence[int]) -> tuple[Attention, ...]:
        """See `Backbone`. The maps are recomputed from queries and keys; `forward` keeps its fused kernel."""
        check_images(images, self.channels, self.spec.tubelet > 0)
        return self(images, Asked(tuple((layer, False) for layer in self.spec.indices(layers)), "attention"))

    @property
    def last(self) -> Asked:
        """The request for the last layer, with the final norm if there is one."""
        return Asked(((self.spec.depth - 1, self.spec.has_norm),), single=True)

    @property
    def has_norm(self) -> bool:
        """Whether the backbone has a final norm."""
        return self.spec.has_norm

    def train(self, mode: bool = True) -> "BackboneModule":
        """Set the training mode, as in torch. A frozen backbone stays in eval mode."""
        return super().train(mode and not self.frozen)


def one_by_one(run: Callable[[Tensor], Mapping[Wanted, Features]], images: Images) -> Mapping[Wanted, Features]:
    """Run a batch at once, or the images of a list one by one, and stack their results."""
    if isinstance(images, Tensor):
        return run(images)
    alone = [run(image[None]) for image in images]
    return {each: stack([outputs[each] for outputs in alone]) for each in alone[0]}


def check_images(images: Images, channels: Sequence[int] = (3,), clips: bool = False) -> None:
    """Raise `ValueError` unless `images` is a float tensor (B, C, H, W) or a non-empty list of float tensors (C, H, W).

    `channels`: the accepted values of C.
    `clips`: whether a float tensor (B, T, C, H, W) is accepted too.
    """
    c = " or ".join(map(str, channels))
    also = f" clips (B, T, {c}, H, W)," if clips else ""
    wanted = f"want a float tensor (B, {c}, H, W), normalised,{also} or a list of ({c}, H, W) tensors of any sizes"
    ranks: tuple[int, ...]
    if isinstance(images, Tensor):
        batch: Sequence[Tensor] = [images]
        ranks = (4, 5) if clips else (4,)
    elif isinstance(images, list | tuple) and images and all(isinstance(image, Tensor) for image in images):
        batch, ranks = images, (3,)
    else:
        raise ValueError(f"images is {_describe(images)}; {wanted}")
    for image in batch:
        if image.ndim not in ranks or image.shape[-3] not in channels or 0 in filter(numbers, image.shape):
            raise ValueError(f"images has shape {tuple(image.shape)}; {wanted}")
        if not image.is_floating_point():
            raise ValueError(f"images is {image.dtype}; {wanted}. `backbone.preprocess(photo)` returns such a tensor")


def _describe(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {sorted({type(item).__name__ for item in value}) or 'nothing'}"
    return f"a {type(value).__name__}"
