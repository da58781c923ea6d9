"""timm networks that are no plain ViT, behind the same contract: Swin, hybrids of ResNet and ViT, CNNs.

A layer is one level of timm's `feature_info`: a stage of a Swin, a block of a ViT, or the stem or a stage of a ResNet.
Each layer has its own width and stride, `spec.dims` and `spec.strides`.

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
    numbers,
    one_by_one,
    pool_cls,
    pool_mean,
)
from vitbackbone.images import Preprocess
from vitbackbone.model import Indivisible, check_kinds
from vitbackbone.networks.swin_windows import CosineAttention, WindowBlock
from vitbackbone.networks.timm_parts import VIT_ATTENTION, require, timm_class
from vitbackbone.networks.timm_sizes import Size, Sizes, level_maps, pooled_width, sizes_of

Windows = Literal["timm", "sized", "fixed"]


@dataclass(frozen=True)
class TimmConfig:
    """The configuration of a `TimmBackbone`. Raises `ValueError` on values that contradict each other.

    `windows`: how a Swin treats sizes other than `image_size`, where upstream implementations differ by tens of
    percent. `"sized"` shifts each map whose shorter side is longer than its window, as in the authors' code built for
    that size and in transformers' Swin. `"fixed"` shifts the stages that are shifted at `image_size`, as in
    transformers' Swin V2. `"timm"` is `"fixed"`, but pads after the shift (see `swin_windows.py`). Other networks
    accept only `"timm"`.
    """

    architecture: str  # timm's name, without the tag of its weights
    image_size: tuple[int, int] = (224, 224)  # (H, W) that the weights were trained at
    size_multiple: int | None = None  # images are padded to a multiple of it; None finds what the network needs
    arguments: tuple[tuple[str, Any], ...] = ()  # keyword arguments of timm's constructor
    any_size: bool = True  # False: the network accepts only images of `image_size`
    windows: Windows = "timm"
    final_norm: bool = True  # False: the network's final norm is left out, for weights that have none
    indivisible: Indivisible = "pad"  # sizes that need padding: pad right and bottom, or refuse

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
            raise wrong(f"arguments={', '.join(names)}; want each name once")


class TimmBackbone(BackboneModule):
    """A timm network that returns features. The network is `model`, and its parameters keep timm's names.

    `norm=True` applies the network's final norm, timm's `norm`. If layers differ in width, the norm fits only layers of
    the last one's width, and `norm=True` raises `ValueError` for the others. Most CNNs have no final norm.

    `pooled` of the last layer, with the final norm if there is one, is what timm's classifier reads:
    `model.forward_head(model.forward_features(images), pre_logits=True)`. The network's own modules compute it,
    including those between the last level and the classifier. `spec.pooled_dim` is its width. In every other case,
    `pooled` is the layer's CLS token if the network pools by its CLS token, or else the mean of the layer's patches.

    An image runs at its own size if the network accepts that size. Otherwise the image is padded with the mean colour
    at the right and bottom, to the smallest size at which every layer has ceil(side / stride) patches along each axis.

    Raises `ValueError` if timm does not know the architecture or does not return its feature levels or its CLS token,
    and if no image size gives maps whose patches lie one stride apart.
    """

    @float32_default()
    def __init__(self, config: TimmConfig, preprocess: Preprocess | None = None, name: str = "timm") -> None:
        import timm

        super().__init__()
        self.config = config
        self.preprocess = preprocess or Preprocess(image_size=config.image_size)
        if not timm.is_model(config.architecture):
            raise ValueError(f"timm {timm.__version__} has no architecture {config.architecture!r}")
        # Not on the meta device, which would lose buffers that no checkpoint holds, such as Swin's position tables.
        with torch.device("cpu"):
            model = _create(config)
        levels = getattr(model, "feature_info", None)
        if levels is None or not hasattr(model, "forward_intermediates"):
            raise ValueError(
                f"timm's {config.architecture} returns no feature levels; want a network with forward_intermediates"
            )
        self.num_prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.has_cls = self.num_prefix > 0 and getattr(model, "cls_token", None) is not None
        handed_out = "return_prefix_tokens" in signature(model.forward_intermediates).parameters
        by_token = (
            getattr(model, "global_pool", "") == "token"
        )  # "token" may also mean attention, in a network without a CLS token
        self.pools_cls = by_token and self.has_cls
        holds_cls = any("cls_token" in name for name, _ in model.named_parameters(recurse=False))
        if (self.num_prefix and not handed_out) or (by_token and holds_cls and not self.has_cls):
            raise ValueError(f"timm does not return the CLS token of {config.architecture}, which its classifier reads")
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
        """See `BackboneModule`. The images of a list run one by one."""
        asked = asked or self.last
        check_images(images)
        with any_size():
            if asked.part == "attention":
                return asked.answer(self._maps(images, asked))
            return asked.answer(one_by_one(partial(self._features, wanted=set(asked.wanted)), images))

    def _features(self, images: Float[Tensor, "B C H W"], wanted: Set[Wanted]) -> Mapping[Wanted, Features]:
        padded = self._pad(images)
        outputs: dict[Wanted, Features] = {}
        for norm in sorted({norm for _, norm in wanted}):  # timm norms all levels or none, so both need two runs
            layers = sorted(layer for layer, asked in wanted if asked == norm)
            levels, final = self._levels(padded, layers, norm)
            for layer, parts in zip(layers, levels, strict=True):
                outputs[layer, norm] = self._unpack(*parts, layer, images, padded)
            if final is not None:
                last = layers[-1], norm
                outputs[last] = replace(outputs[last], pool=Pooled(self._pool(final, outputs[last].grid, padded)))
        return outputs

    def _maps(self, images: Images, asked: Asked) -> Mapping[Wanted, Attention]:
        """Return the attention maps of each requested layer.

        Raises `ValueError` if there is no attention over the whole image: a Swin attends within windows, and a CNN has
        no attention.
        """
        indices = [layer for layer, _ in asked.wanted]
        blocks = self._plain_blocks()
        if not isinstance(images, Tensor):
            raise ValueError("attention maps of a list of images do not stack; call once per image")
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
        """Pad the images at the right and bottom with the mean colour, and convert them to the network's dtype."""
        height, width = _size(images)
        if not numbers(height, width) and any(isinstance(self.model, timm_class(name)) for name in ("Swin", "Swin V2")):
            raise ValueError(
                f"{self.spec.name} cuts and shifts its windows by a rule for each image size, so that no graph serves "
                "several. Export one height and width; the batch may be dynamic"
            )
        if self.sizes is None:
            if (height, width) != self.config.image_size:
                native = " x ".join(map(str, self.config.image_size))
                raise ValueError(f"images are {height} x {width}; {self.spec.name} accepts only images of {native}")
            return images.to(self._dtype)
        padded = self.sizes.padded((height, width))
        if numbers(height, width) and padded == (height, width):
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
        """Return the map (B, D, h, w) and the prefix tokens (B, P, D) of each of `layers`, which ascend.

        The second result is the output of `forward_features` if the network's own pooling needs it, or else None.
        """
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
        """Pool the output of `forward_features` with the network's own head.

        Patches beyond `grid` show only padding and are left out.
        """
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
        """Turn the network's result for `padded` into the `Features` of `images`."""
        given, run = (Geometry.of(x, self.strides[layer]) for x in (images, padded))
        if patches.shape[-2:] != run.grid:
            raise ValueError(
                f"layer {layer} of {self.spec.name} is a map of {patches.shape[2]} x {patches.shape[3]} for images of "
                f"{padded.shape[2]} x {padded.shape[3]}, which contradicts its stride of {self.strides[layer]}"
            )
        h, w = given.grid
        cls = prefix[:, 0] if self.has_cls else None
        registers = prefix[:, int(self.has_cls) :]
        return Features(cls, registers, patches[:, :, :h, :w], given, pool_cls if self.pools_cls else pool_mean)

    def _plain_blocks(self) -> list[Any]:
        """Return the blocks of a ViT whose attention is softmax(q kᵀ) over all tokens."""
        block_class, attention_class = timm_class("ViT block"), timm_class("ViT attention")
        blocks = list(getattr(self.model, "blocks", ()))
        plain = [type(block) is block_class and type(block.attn) is attention_class for block in blocks]
        if len(blocks) != len(self.dims) or not all(plain):
            raise ValueError(
                f"{self.spec.name} has no attention map over the image: a Swin attends within windows that shift from "
                "block to block, a CNN not at all. Use a ViT or a hybrid"
            )
        return blocks


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _create(config: TimmConfig) -> Any:
    """Build the network, untrained, on the default device."""
    import timm

    model = timm.create_model(config.architecture, pretrained=False, num_classes=0, **dict(config.arguments))
    _replace_cosine_attention(model)
    if config.windows != "timm":
        _replace_windows(model, by_size=config.windows == "sized")
    if not config.final_norm:
        model.norm = nn.Identity()
    return model


def _without_weights(config: TimmConfig) -> Any | None:
    """Build the network on the meta device, or return None if it reads values of tensors and cannot run there."""
    try:
        with torch.device("meta"):
            model = _create(config).eval()
        level_maps(model, config.image_size)
    except (NotImplementedError, RuntimeError):
        return None
    return model


def _crop(final: Tensor, run: Size, grid: Size, num_prefix: int, layout: str) -> Tensor:
    """Crop the output of `forward_features`, a map or tokens, from the grid `run` to `grid`.

    Any other output has no part that shows only padding, and is returned unchanged.
    """
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
    """Return softmax(q kᵀ · scale) of timm's attention for its input tokens."""
    require(attention, VIT_ATTENTION)
    q, k, _ = rearrange(
        attention.qkv(x), "B N (three heads d) -> three B heads N d", three=3, heads=attention.num_heads
    )
    return (attention.q_norm(q) * attention.scale @ attention.k_norm(k).transpose(-2, -1)).softmax(dim=-1)


def _replace_cosine_attention(model: Any) -> None:
    """Replace the attention of each Swin V2 block by one that is finite in half precision."""
    block_class = timm_class("Swin V2 block")
    blocks: list[Any] = [module for module in model.modules() if isinstance(module, block_class)]
    for block in blocks:
        block.attn = CosineAttention(block.attn)


def _replace_windows(model: Any, by_size: bool) -> None:
    """Replace each block of a Swin by one that accepts maps of any size."""
    post_norm = isinstance(model, timm_class("Swin V2"))
    if not post_norm and not isinstance(model, timm_class("Swin")):
        raise ValueError(f"TimmConfig: {type(model).__name__} is no Swin; want windows='timm'")
    stages: Any = model.layers
    for stage in stages:
        for i, block in enumerate(stage.blocks):
            stage.blocks[i] = WindowBlock(block, by_size, post_norm)
