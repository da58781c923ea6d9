"""Networks of timm that are no plain ViT, behind the same contract: Swin, hybrids of ResNet and ViT, CNNs.

A layer is one level of timm's `feature_info`: a stage of a Swin, a block of a ViT, and of a ResNet first its stem and
then its four stages. Each has a width and a stride of its own, `spec.dims` and `spec.strides`.

Axes: `B` batch, `R` register tokens, `D` width, `h w` patch grid, `N` tokens, `H W` pixels.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.config import Indivisible, check_kinds
from vitbackbone.features import (
    Asked,
    Attention,
    BackboneModule,
    BackboneSpec,
    Features,
    Geometry,
    Images,
    Wanted,
    check_images,
    one_by_one,
    pool_cls,
    pool_mean,
)
from vitbackbone.preprocess import Preprocess
from vitbackbone.tracing import any_size, numbers
from vitbackbone.windows import WindowBlock

Windows = Literal["timm", "sized", "fixed"]


@dataclass(frozen=True)
class TimmConfig:
    """Everything that decides a `TimmBackbone`. Raises `ValueError` on values that contradict each other.

    `windows` says what a Swin does at other sizes than `image_size`, where upstreams disagree by tens of percent:
    `"sized"` shifts each map whose shorter side is longer than its window: the authors' code built for that size, and
    transformers' Swin. `"fixed"` shifts the stages that are shifted at `image_size`: transformers' Swin V2. `"timm"` is
    `"fixed"`, but pads after the shift (see `windows.py`); it is the one value for any other network.
    """

    architecture: str  # timm's name, without the tag of its weights
    image_size: tuple[int, int] = (224, 224)  # (H, W) that the weights were trained for
    size_multiple: int | None = None  # images are padded to a multiple of it; None: the largest stride of the layers
    arguments: tuple[tuple[str, Any], ...] = ()  # for timm's constructor, by name
    any_size: bool = True  # False: the network takes images of `image_size` alone
    windows: Windows = "timm"
    indivisible: Indivisible = "pad"  # sizes that `size_multiple` does not divide: pad right and bottom, or refuse

    def __post_init__(self) -> None:
        def wrong(text: str) -> ValueError:
            return ValueError(f"TimmConfig: {text}")

        check_kinds(self, {"windows": Windows, "indivisible": Indivisible})
        if not self.architecture or "." in self.architecture:
            raise wrong(f"architecture={self.architecture!r}; want timm's name without the tag of its weights")
        if min(self.image_size) < 1:
            raise wrong(f"image_size={self.image_size}; want (height, width) in pixels")
        if self.size_multiple is not None and self.size_multiple < 1:
            raise wrong(f"size_multiple={self.size_multiple}; want at least 1")
        names = [name for name, _ in self.arguments]
        if len(set(names)) < len(names):
            raise wrong(f"arguments name one twice: {', '.join(names)}")


class TimmBackbone(BackboneModule):
    """A network of timm that returns features. The network is `model`, its parameters under timm's names.

    `norm=True` is the network's final norm, timm's `norm`. Where the layers differ in width it fits the last alone, and
    `ValueError` says so of another; a CNN mostly has none. `pooled` is the CLS token where the network classifies from
    it, else the mean of the patches, and a norm that the network has for the pooled vector is applied to it. What some
    CNNs have between their last level and the pooling, such as EfficientNet's last convolution, is left out.

    Raises `ValueError` if timm does not know the architecture, or does not hand out its feature levels or CLS token.
    """

    def __init__(self, config: TimmConfig, preprocess: Preprocess | None = None, name: str = "timm") -> None:
        import timm

        super().__init__()
        self.config = config
        self.preprocess = preprocess or Preprocess(image_size=config.image_size)
        if not timm.is_model(config.architecture):
            raise ValueError(f"timm {timm.__version__} has no architecture {config.architecture!r}")
        # Never on the meta device: buffers that no checkpoint holds, such as Swin's table of positions, would be lost.
        with torch.device("cpu"):
            model: Any = timm.create_model(
                config.architecture, pretrained=False, num_classes=0, **dict(config.arguments)
            )
        levels = getattr(model, "feature_info", None)
        if levels is None or not hasattr(model, "forward_intermediates"):
            raise ValueError(f"timm's {config.architecture} has no feature levels to hand out")
        self.num_prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.has_cls = self.num_prefix > 0 and getattr(model, "cls_token", None) is not None
        handed_out = "return_prefix_tokens" in signature(model.forward_intermediates).parameters
        if (self.num_prefix and not handed_out) or (getattr(model, "global_pool", "") == "token" and not self.has_cls):
            raise ValueError(f"timm does not hand out the CLS token of {config.architecture}, which classifies from it")
        self.dims = tuple(int(level["num_chs"]) for level in levels)
        self.strides = tuple(int(level["reduction"]) for level in levels)
        if config.windows != "timm":
            _replace_windows(model, by_size=config.windows == "sized")
        self.model: Any = model
        heads = [m.num_heads for m in model.modules() if isinstance(getattr(m, "num_heads", None), int)]
        self.pooling = _pooling(config.architecture, model)  # a tuple, whose module is not registered a second time
        self.spec = BackboneSpec(
            name=name,
            dim=self.dims[-1],
            depth=len(self.dims),
            num_heads=heads[-1] if heads else 0,
            stride=self.strides[-1],
            num_registers=self.num_prefix - int(self.has_cls),
            has_cls=self.has_cls,
            has_norm=not isinstance(getattr(model, "norm", None), nn.Identity | None),
            image_size=config.image_size,
            settings=repr(config),
            dims=self.dims,
            strides=self.strides,
        )

    def forward(self, images: Images, asked: Asked | None = None) -> Any:
        """See `BackboneModule`. Images of different sizes are run one by one."""
        asked = asked or self.last
        check_images(images)
        with any_size():
            if asked.part == "attention":
                return asked.answer(self._maps(images, asked))
            return asked.answer(one_by_one(partial(self._features, wanted=set(asked.wanted)), images))

    def _features(self, images: Float[Tensor, "B C H W"], wanted: Set[Wanted]) -> Mapping[Wanted, Features]:
        padded = self._pad(images)
        outputs: dict[Wanted, Features] = {}
        for norm in sorted({norm for _, norm in wanted}):  # timm norms all levels or none: both take two runs
            layers = sorted(layer for layer, asked in wanted if asked == norm)
            for layer, parts in zip(layers, self._levels(padded, layers, norm), strict=True):
                outputs[layer, norm] = self._unpack(*parts, layer, images, padded)
        return outputs

    def _maps(self, images: Images, asked: Asked) -> Mapping[Wanted, Attention]:
        """The attention maps of each layer asked.

        Raises `ValueError` where no one map over the image exists: a Swin attends within windows, a CNN not at all.
        """
        indices = [layer for layer, _ in asked.wanted]
        blocks = self._plain_blocks()
        if not isinstance(images, Tensor):
            raise ValueError("attention maps of images of different sizes do not stack; call once per image")
        padded = self._pad(images)
        entering: dict[int, Tensor] = {}
        hooks = [
            blocks[i].attn.register_forward_pre_hook(lambda _, given, i=i: entering.update({i: given[0]}))
            for i in set(indices)
        ]
        try:
            self._levels(padded, [max(indices)], norm=False)
        finally:
            for hook in hooks:
                hook.remove()
        grid = (padded.shape[-2] // self.strides[-1], padded.shape[-1] // self.strides[-1])
        return {(i, False): Attention(_weights(blocks[i].attn, x), self.num_prefix, grid) for i, x in entering.items()}

    def _pad(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 Hp Wp"]:
        """In the network's precision, the right and bottom filled up with the mean colour."""
        height, width = _size(images)
        if not self.config.any_size:
            if (height, width) != self.config.image_size:
                native = " x ".join(map(str, self.config.image_size))
                raise ValueError(f"images are {height} x {width}; {self.spec.name} takes images of {native} alone")
            return images.to(self._dtype)
        multiple = self.config.size_multiple or max(self.strides)
        tall, wide = (((side - 1) // multiple + 1) * multiple for side in (height, width))
        if not numbers(height, width) or (tall, wide) != (height, width):
            if self.config.indivisible == "refuse":
                raise ValueError(
                    f"images are {height} x {width}, which {multiple} does not divide; "
                    f"resize them to {tall} x {wide}, or load the backbone with indivisible='pad'"
                )
            images = F.pad(images, (0, wide - width, 0, tall - height))
        return images.to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def _levels(self, images: Float[Tensor, "B 3 H W"], layers: list[int], norm: bool) -> list[tuple[Tensor, Tensor]]:
        """The map (B, D, h, w) and the prefix tokens (B, P, D) of `layers`, which ascend."""
        common = {"indices": layers, "norm": norm, "stop_early": True, "intermediates_only": True}
        if self.num_prefix:
            return self.model.forward_intermediates(images, return_prefix_tokens=True, **common)
        maps = self.model.forward_intermediates(images, **common)
        return [(patches, patches.new_zeros(patches.shape[0], 0, patches.shape[1])) for patches in maps]

    def _unpack(
        self,
        patches: Float[Tensor, "B D hp wp"],
        prefix: Float[Tensor, "B P D"],
        layer: int,
        images: Tensor,
        padded: Tensor,
    ) -> Features:
        """What the network returned for `padded` to the `Features` of `images`."""
        given, run = (Geometry.of(x, self.strides[layer]) for x in (images, padded))
        if patches.shape[-2:] != run.grid:
            raise ValueError(
                f"layer {layer} of {self.spec.name} is a map of {patches.shape[2]} x {patches.shape[3]} for images of "
                f"{padded.shape[2]} x {padded.shape[3]}, which does not go with its stride of {self.strides[layer]}"
            )
        h, w = given.grid
        cls = prefix[:, 0] if self.has_cls else None
        pool, norm = self.pooling
        if self.dims[layer] != self.dims[-1]:
            norm = nn.Identity()  # that of the pooled vector has the last layer's width
        registers = prefix[:, int(self.has_cls) :]
        return Features(cls, registers, patches[:, :, :h, :w], given, partial(_pool, pool, norm))

    def _plain_blocks(self) -> list[Any]:
        """The blocks of a ViT whose attention is softmax(q kᵀ) over all tokens."""
        from timm.layers.attention import Attention as PlainAttention
        from timm.models.vision_transformer import Block

        blocks = list(getattr(self.model, "blocks", ()))
        plain = [type(block) is Block and type(block.attn) is PlainAttention for block in blocks]
        if len(blocks) != len(self.dims) or not all(plain):
            raise ValueError(
                f"{self.spec.name} has no attention map over the image: a Swin attends within windows that shift from "
                "block to block, a CNN not at all. ViTs and hybrids have one"
            )
        return blocks


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


Pool = Callable[[Features], Tensor]


def _pooling(architecture: str, model: Any) -> tuple[Pool, nn.Module]:
    """How the network pools, and what it does to the pooled vector before its classifier."""
    from timm.layers.classifier import NormMlpClassifierHead

    kind = getattr(model, "global_pool", "avg")
    if isinstance(kind, str) and kind not in ("token", "avg", ""):
        raise ValueError(f"timm's {architecture} pools by {kind!r}, which is not supported; want 'token' or 'avg'")
    head = getattr(model, "head", None)
    if isinstance(head, NormMlpClassifierHead):
        norm: nn.Module = nn.Sequential(nn.Unflatten(1, (-1, 1, 1)), head.norm, head.flatten, head.pre_logits)
    else:
        norm = getattr(model, "fc_norm", nn.Identity())
    return pool_cls if kind == "token" else pool_mean, norm


def _pool(pool: Pool, norm: nn.Module, features: Features) -> Float[Tensor, "B D"]:
    return norm(pool(features))


def _weights(attention: Any, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B heads N N"]:
    """softmax(q kᵀ · scale) of timm's attention, for the tokens that enter it."""
    q, k, _ = rearrange(
        attention.qkv(x), "B N (three heads d) -> three B heads N d", three=3, heads=attention.num_heads
    )
    return (attention.q_norm(q) * attention.scale @ attention.k_norm(k).transpose(-2, -1)).softmax(dim=-1)


def _replace_windows(model: Any, by_size: bool) -> None:
    """Each block of a Swin by one whose windows fit every map."""
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    if not isinstance(model, SwinTransformer | SwinTransformerV2):
        raise ValueError(f"TimmConfig: windows are a Swin's; want windows='timm' for {type(model).__name__}")
    post_norm = isinstance(model, SwinTransformerV2)
    stages: Any = model.layers
    for stage in stages:
        for i, block in enumerate(stage.blocks):
            stage.blocks[i] = WindowBlock(block, by_size, post_norm)
