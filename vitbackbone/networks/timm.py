"""Networks of timm that are no plain ViT, behind the same contract: Swin, hybrids of ResNet and ViT, CNNs.

A layer is one level of timm's `feature_info`: a stage of a Swin, a block of a ViT, and of a ResNet first its stem and
then its four stages. Each has a width and a stride of its own, `spec.dims` and `spec.strides`.

Axes: `B` batch, `R` register tokens, `D` width, `h w` patch grid, `N` tokens, `H W` pixels.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.contract import (
    Asked,
    Attention,
    BackboneModule,
    BackboneSpec,
    Features,
    Geometry,
    Images,
    Pooled,
    Wanted,
    any_size,
    check_images,
    float32_default,
    one_by_one,
    pool_cls,
    pool_mean,
)
from vitbackbone.images import Preprocess
from vitbackbone.model import Indivisible, check_kinds
from vitbackbone.networks.swin_windows import CosineAttention, WindowBlock
from vitbackbone.networks.timm_sizes import Size, Sizes, level_maps, pooled_width, sizes_of

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
    size_multiple: int | None = None  # images are padded to a multiple of it; None: what the network needs, if anything
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

    `norm=True` applies the network's final norm, timm's `norm`. Where the layers differ in width, the norm fits only
    the last one, and another layer raises `ValueError`. Most CNNs have no final norm.

    `pooled` of the last layer, with the final norm if there is one, is what timm's classifier reads:
    `model.forward_head(model.forward_features(images), pre_logits=True)`. The network's own modules compute it, those
    between the last level and the classifier among them. `spec.pooled_dim` is its width. Everywhere else `pooled` is
    the layer's own CLS token if the network pools by its CLS token, or else the mean of the layer's patches.

    An image runs at its own size if the network takes it as it is. Otherwise the image is padded with the mean colour
    at the right and bottom, to the smallest size that gives every layer a patch for each `stride` pixels begun.

    Raises `ValueError` if timm does not know the architecture, if it does not hand out the feature levels or the CLS
    token, or if no image size gives maps whose patches lie one stride apart.
    """

    @float32_default()
    def __init__(self, config: TimmConfig, preprocess: Preprocess | None = None, name: str = "timm") -> None:
        import timm

        super().__init__()
        self.config = config
        self.preprocess = preprocess or Preprocess(image_size=config.image_size)
        if not timm.is_model(config.architecture):
            raise ValueError(f"timm {timm.__version__} has no architecture {config.architecture!r}")
        # Never on the meta device: buffers that no checkpoint holds, such as Swin's table of positions, would be lost.
        with torch.device("cpu"):
            model = _create(config)
        levels = getattr(model, "feature_info", None)
        if levels is None or not hasattr(model, "forward_intermediates"):
            raise ValueError(f"timm's {config.architecture} has no feature levels to hand out")
        self.num_prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.has_cls = self.num_prefix > 0 and getattr(model, "cls_token", None) is not None
        handed_out = "return_prefix_tokens" in signature(model.forward_intermediates).parameters
        by_token = getattr(model, "global_pool", "") == "token"  # or by attention, in a network without such a token
        self.pools_cls = by_token and self.has_cls
        holds_cls = any("cls_token" in name for name, _ in model.named_parameters(recurse=False))
        if (self.num_prefix and not handed_out) or (by_token and holds_cls and not self.has_cls):
            raise ValueError(f"timm does not hand out the CLS token of {config.architecture}, which classifies from it")
        self.dims = tuple(int(level["num_chs"]) for level in levels)
        self.strides = tuple(int(level["reduction"]) for level in levels)
        self.model: Any = model
        heads = [m.num_heads for m in model.modules() if isinstance(getattr(m, "num_heads", None), int)]
        shapes = (_without_weights(config) or model).eval()
        self.sizes = (
            Sizes(config.size_multiple)
            if config.any_size and config.size_multiple is not None
            else sizes_of(shapes, config.architecture, config.image_size, config.any_size)
        )
        self.own_pooled_dim = pooled_width(shapes, config.image_size)
        model.train()
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
            pooled_dim=self.own_pooled_dim or self.dims[-1],
            pooled_dims=(*self.dims[:-1], self.own_pooled_dim or self.dims[-1]),
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
            levels, final = self._levels(padded, layers, norm)
            for layer, parts in zip(layers, levels, strict=True):
                outputs[layer, norm] = self._unpack(*parts, layer, images, padded)
            if final is not None:
                last = layers[-1], norm
                outputs[last] = replace(outputs[last], pool=Pooled(self._pool(final, outputs[last].grid, padded)))
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
        if self.sizes is None:
            if (height, width) != self.config.image_size:
                native = " x ".join(map(str, self.config.image_size))
                raise ValueError(f"images are {height} x {width}; {self.spec.name} takes images of {native} alone")
            return images.to(self._dtype)
        padded = self.sizes.padded((height, width))
        if padded == (height, width):
            return images.to(self._dtype)
        if self.config.indivisible == "refuse":
            raise ValueError(
                f"images are {height} x {width}, which {self.sizes.multiple} does not divide; "
                f"resize them to {padded[0]} x {padded[1]}, or load the backbone with indivisible='pad'"
            )
        images = F.pad(images, (0, padded[1] - width, 0, padded[0] - height))
        return images.to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def _levels(
        self, images: Float[Tensor, "B 3 H W"], layers: list[int], norm: bool
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        """The map (B, D, h, w) and the prefix tokens (B, P, D) of `layers`, which ascend. Beside them what
        `forward_features` returns, if this run computes the network's own pooled vector."""
        whole = layers[-1] == len(self.dims) - 1 and norm == self.has_norm and self.own_pooled_dim is not None
        options: dict[str, Any] = {"indices": layers, "norm": norm}
        if self.num_prefix:
            options["return_prefix_tokens"] = True
        found = self.model.forward_intermediates(images, stop_early=not whole, intermediates_only=not whole, **options)
        final, levels = found if whole else (None, found)
        if self.num_prefix:
            return levels, final
        return [(patches, patches.new_zeros(patches.shape[0], 0, patches.shape[1])) for patches in levels], final

    def _pool(self, final: Tensor, grid: Size, padded: Tensor) -> Float[Tensor, "B P"]:
        """The network's own pooled vector, of what `forward_features` returned. The patches beyond `grid` show padding
        alone and are left out."""
        run = Geometry((_size(padded),), self.strides[-1]).grid
        if run != grid:
            final = _crop(final, run, grid, self.num_prefix, getattr(self.model, "output_fmt", "NCHW"))
        return self.model.forward_head(final, pre_logits=True)

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
        registers = prefix[:, int(self.has_cls) :]
        return Features(cls, registers, patches[:, :, :h, :w], given, pool_cls if self.pools_cls else pool_mean)

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


def _create(config: TimmConfig) -> Any:
    """The network, untrained, on the default device."""
    import timm

    model = timm.create_model(config.architecture, pretrained=False, num_classes=0, **dict(config.arguments))
    _replace_cosine_attention(model)
    if config.windows != "timm":
        _replace_windows(model, by_size=config.windows == "sized")
    return model


def _without_weights(config: TimmConfig) -> Any | None:
    """The network on the meta device, or None if it cannot run there, because it reads numbers of its own."""
    try:
        with torch.device("meta"):
            model = _create(config).eval()
        level_maps(model, config.image_size)
    except (NotImplementedError, RuntimeError):
        return None
    return model


def _crop(final: Tensor, run: Size, grid: Size, num_prefix: int, layout: str) -> Tensor:
    """What `forward_features` returned on the grid `run`, cut to `grid`: a map or tokens. Of anything else there is no
    part that shows padding alone."""
    h, w = grid
    if final.ndim == 4 and layout == "NHWC" and final.shape[1:3] == run:
        return final[:, :h, :w]
    if final.ndim == 4 and final.shape[2:] == run:
        return final[:, :, :h, :w]
    if final.ndim == 3 and final.shape[1] == num_prefix + run[0] * run[1]:
        patches = rearrange(final[:, num_prefix:], "B (h w) D -> B h w D", h=run[0])[:, :h, :w]
        return torch.cat([final[:, :num_prefix], patches.flatten(1, 2)], dim=1)
    return final


def _weights(attention: Any, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B heads N N"]:
    """softmax(q kᵀ · scale) of timm's attention, for the tokens that enter it."""
    q, k, _ = rearrange(
        attention.qkv(x), "B N (three heads d) -> three B heads N d", three=3, heads=attention.num_heads
    )
    return (attention.q_norm(q) * attention.scale @ attention.k_norm(k).transpose(-2, -1)).softmax(dim=-1)


def _replace_cosine_attention(model: Any) -> None:
    """The attention of each block of a Swin V2 by one that is finite in half precision."""
    from timm.models.swin_transformer_v2 import SwinTransformerV2Block

    blocks: list[Any] = [module for module in model.modules() if isinstance(module, SwinTransformerV2Block)]
    for block in blocks:
        block.attn = CosineAttention(block.attn)


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
