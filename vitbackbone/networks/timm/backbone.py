"""Every network of timm behind the same contract: Swin, Hiera, hybrids of ResNet and ViT, CNNs, and so on.

A layer is one level of timm's `feature_info`: a stage of a Swin, a block of a ViT, or the stem or a stage of a ResNet.
Each layer has its own width and stride, `spec.dims` and `spec.strides`.

Axes: `B` batch, `R` register tokens, `D` width, `h w` patch grid, `N` tokens, `H W` pixels.
"""

from collections.abc import Mapping, Set
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
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
    describe_settings,
    device_of,
    float32_default,
    numbers,
    one_by_one,
    pool_cls,
    pool_mean,
)
from vitbackbone.images import Preprocess
from vitbackbone.model import Indivisible, check_kinds
from vitbackbone.networks.timm.levels import Outputs, Size, crop, level_maps, pool, prefix_of, read_levels, run
from vitbackbone.networks.timm.network import SizedCopies, WithoutInit, differing, fit_to_grid, for_size
from vitbackbone.networks.timm.private import VIT_ATTENTION, require, timm_class
from vitbackbone.networks.timm.projection import Projection
from vitbackbone.networks.timm.sizes import Sizes, sizes_of
from vitbackbone.networks.timm.swin_windows import CosineAttention, WindowBlock

Windows = Literal["timm", "sized", "fixed"]
TRIAL = 128  # pixels of a side


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
    rebuild: bool = False  # whether timm builds the network again for another size, and resizes its position tables
    antialias: bool = True  # whether it resizes them with antialiasing, as timm does, and transformers does not
    channels: int = 3  # of the images
    windows: Windows = "timm"
    final_norm: bool = True  # False: the network's final norm is left out, for weights that have none
    map_norm: bool = False  # whether the norm of the head is the final norm of the map too (DINOv3's ConvNeXt)
    indivisible: Indivisible = "pad"  # sizes that need padding: pad right and bottom, or refuse
    projection: Projection | None = None  # from the pooled vector to the space of texts

    def __post_init__(self) -> None:
        def wrong(text: str) -> ValueError:
            return ValueError(f"TimmConfig: {text}")

        check_kinds(self, {"windows": Windows, "indivisible": Indivisible})
        if not self.architecture or "." in self.architecture:
            raise wrong(f"architecture={self.architecture!r}; want timm's name without the tag of its weights")
        if min(self.image_size) < 1:
            raise wrong(f"image_size={self.image_size}; want (height, width) in pixels")
        if self.channels < 1:
            raise wrong(f"channels={self.channels}; want at least 1")
        if self.size_multiple is not None and self.size_multiple < 1:
            raise wrong(f"size_multiple={self.size_multiple}; want at least 1")
        names = [name for name, _ in self.arguments]
        if len(set(names)) < len(names):
            raise wrong(f"arguments={', '.join(names)}; want each name once")


class TimmBackbone(BackboneModule):
    """A timm network that returns features. The network is `model`, and its parameters keep timm's names.

    `norm=True` applies the network's final norm. If layers differ in width, the norm fits only layers of the last one's
    width, and `norm=True` raises `ValueError` for the others. Most CNNs have no final norm.

    `cls` and `registers` are the tokens in front of the patches. Some networks have them only in the output of
    `forward_features`, because they join the patches after the last block (CaiT, VOLO, XCiT) or because timm does not
    return them elsewhere. There, the last layer with its final norm has them; other layers have `cls=None` and no
    registers.

    `pooled` of the last layer, with the final norm if there is one, is what timm's classifier reads:
    `model.forward_head(model.forward_features(images), pre_logits=True)`. The network's own modules compute it,
    including those between the last level and the classifier. With `config.projection`, it is projected to the space of
    texts. `spec.pooled_dim` is its width. In every other case, `pooled` is the layer's CLS token if the network pools
    by its CLS token, or else the mean of the layer's patches.

    An image runs at its own size if the network accepts that size. Otherwise the image is padded with the mean colour
    at the right and bottom, to the smallest size at which every layer has ceil(side / stride) patches along each axis.
    With `config.rebuild`, other sizes run in a copy that timm builds for that size. The copy shares the parameters,
    except that its position tables are resized (`tables.py`).

    `model`: a network that is built already, as `config` says. On the meta device it computes only shapes.

    Raises `ValueError` if timm does not know the architecture, and if no image size gives maps whose patches lie one
    stride apart.
    """

    @float32_default()
    def __init__(
        self,
        config: TimmConfig,
        preprocess: Preprocess | None = None,
        name: str = "timm",
        model: nn.Module | None = None,
    ) -> None:
        import timm

        super().__init__()
        self.config = config
        self.preprocess = preprocess or Preprocess(image_size=config.image_size)
        self.channels = (config.channels,)
        if not timm.is_model(config.architecture):
            raise ValueError(f"timm {timm.__version__} has no architecture {config.architecture!r}")
        shapes = model or without_weights(config)
        model = model or _create_on_cpu(config)
        self.model: Any = model
        self.shifts = any(isinstance(model, timm_class(name)) for name in ("Swin", "Swin V2"))
        shapes = shapes or model
        with torch.device(device_of(shapes) or "cpu"):  # device of the tables that a network computes as it runs
            self.levels = read_levels(shapes.eval(), config.architecture, _trial_size(config), _projects(config))
        if config.map_norm:
            self.levels = replace(self.levels, has_norm=True)
        create = partial(_for_size, config)
        self.copies = SizedCopies(create, config.image_size, config.antialias) if config.rebuild else None
        if not config.rebuild:
            self.sizes = self._find_sizes(shapes)
        model.train()
        levels = self.levels
        self.dims, self.strides = levels.dims, levels.strides
        by_token = getattr(model, "global_pool", "") == "token"  # without CLS, "token" may mean attention pooling
        self.pools_cls = by_token and levels.has_cls
        parts: list[Any] = list(model.modules())
        heads = [part.num_heads for part in parts if isinstance(getattr(part, "num_heads", None), int)]
        pooled_dim = levels.pooled_dim or levels.dims[-1]
        if config.projection is not None:
            if levels.pooled_dim is None:
                raise ValueError(f"timm's {config.architecture} has no head, so its vectors cannot be projected")
            self.projection = config.projection.layers(pooled_dim)
            pooled_dim = config.projection.dim
        self.spec = BackboneSpec(
            name=name,
            dim=levels.dims[-1],
            depth=levels.depth,
            num_heads=heads[-1] if heads else 0,
            stride=levels.strides[-1],
            num_registers=levels.num_prefix - int(levels.has_cls),
            has_cls=levels.has_cls,
            has_norm=levels.has_norm,
            image_size=config.image_size,
            in_chans=config.channels,
            settings=describe_settings(config),
            dims=levels.dims,
            strides=levels.strides,
            pooled_dim=pooled_dim,
            pooled_dims=(*levels.dims[:-1], pooled_dim),
        )

    @cached_property
    def sizes(self) -> Sizes | None:
        """The image sizes that the network accepts without padding, or None if it accepts only its own.

        They are found when they are first needed, because a network that is rebuilt for each size takes seconds.
        """
        return self._find_sizes(self.model)

    def _find_sizes(self, model: nn.Module) -> Sizes | None:
        config = self.config
        if not config.any_size:
            return None
        if config.size_multiple is not None:
            return Sizes(config.size_multiple)
        build = self._rebuilt if config.rebuild else lambda _: model
        with torch.device(device_of(model) or "cpu"):
            return sizes_of(build, config.image_size, self.levels, min(self.strides) if config.rebuild else 1)

    def _rebuilt(self, size: Size) -> Any:
        """Build the network for a size, without weights. Raises `SizeRefused` if its weights do not fit."""
        network = without_weights(self.config, size) or _for_size(self.config, size).eval()
        differing(network, self.model)
        return network

    def forward(self, images: Images, asked: Asked | None = None) -> Any:
        """See `BackboneModule`. The images of a list run one by one."""
        asked = asked or self.last
        check_images(images, self.channels)
        with any_size():
            if asked.part == "attention":
                return asked.answer(self._maps(images, asked))
            return asked.answer(one_by_one(partial(self._features, wanted=set(asked.wanted)), images))

    def network(self, size: Size) -> Any:
        """Return the network that runs images of `size`: `model`, or a copy that shares its parameters."""
        return self.model if self.copies is None else self.copies.at(self.model, size)

    def _features(self, images: Float[Tensor, "B C H W"], wanted: Set[Wanted]) -> Mapping[Wanted, Features]:
        padded = self._pad(images)
        model = self.network(_size(padded))
        outputs: dict[Wanted, Features] = {}
        for norm in sorted({norm for _, norm in wanted}):  # timm norms all levels or none, so both need two runs
            layers = sorted(layer for layer, asked in wanted if asked == norm)
            last = layers[-1] == self.levels.depth - 1 and norm == self.levels.has_norm
            own = norm and not self.config.map_norm
            found = run(model, padded, layers, own, final=last and self.levels.reads_final)
            if norm and self.config.map_norm:
                found = replace(found, maps=[model.head.norm(level) for level in found.maps])
            for i, layer in enumerate(layers):
                outputs[layer, norm] = self._unpack(found, i, layer, model, images, padded)
        return outputs

    def _unpack(self, found: Outputs, i: int, layer: int, model: Any, images: Tensor, padded: Tensor) -> Features:
        """Turn the network's result for `padded` into the `Features` of `images`."""
        patches, prefix = found.maps[i], found.prefixes[i]
        given, ran = (Geometry.of(x, self.strides[layer]) for x in (images, padded))
        if patches.shape[-2:] != ran.grid:
            raise ValueError(
                f"layer {layer} of {self.spec.name} is a map of {patches.shape[2]} x {patches.shape[3]} for images of "
                f"{padded.shape[2]} x {padded.shape[3]}, which contradicts its stride of {self.strides[layer]}"
            )
        h, w = given.grid
        ran_grid = (ran.grid[0], ran.grid[1])
        final = found.final if layer == self.levels.depth - 1 else None
        if prefix is None and final is not None and self.levels.num_prefix:
            prefix = prefix_of(final, ran_grid, patches.shape[1], self.levels.num_prefix)
        has_cls = self.levels.has_cls and prefix is not None
        if prefix is None:
            prefix = patches.new_zeros(patches.shape[0], 0, patches.shape[1])
        pooling: Any = pool_cls if self.pools_cls and has_cls else pool_mean
        if final is not None and self.levels.pooled_dim is not None:
            pooling = Pooled(self._pool(model, final, ran_grid, (h, w)))
        cls = prefix[:, 0] if has_cls else None
        return Features(cls, prefix[:, int(has_cls) :], patches[:, :, :h, :w], given, pooling)

    def _pool(self, model: Any, final: Any, ran: Size, grid: Size) -> Float[Tensor, "B P"]:
        """Pool the output of `forward_features` with the network's own head.

        Patches beyond `grid` show only padding and are left out.
        """
        if ran != grid:
            final = crop(final, ran, grid, self.levels.num_prefix, getattr(model, "output_fmt", "NCHW"))
        pooled = pool(model, final, projects=_projects(self.config))
        assert pooled is not None
        return pooled if self.config.projection is None else self.projection(pooled)

    def _maps(self, images: Images, asked: Asked) -> Mapping[Wanted, Attention]:
        """Return the attention maps of each requested layer.

        Raises `ValueError` if there is no attention over the whole image: a Swin attends within windows, and a CNN has
        no attention.
        """
        indices = [layer for layer, _ in asked.wanted]
        if not isinstance(images, Tensor):
            raise ValueError("attention maps of a list of images do not stack; call once per image")
        self._plain_blocks(self.model)
        padded = self._pad(images)
        model = self.network(_size(padded))
        blocks = self._plain_blocks(model)
        entering: dict[int, Tensor] = {}
        hooks = [
            blocks[i].attn.register_forward_pre_hook(lambda _, given, i=i: entering.update({i: given[0]}))
            for i in set(indices)
        ]
        try:
            run(model, padded, [max(indices)], norm=False, final=False)
        finally:
            for hook in hooks:
                hook.remove()
        grid = (padded.shape[-2] // self.strides[-1], padded.shape[-1] // self.strides[-1])
        prefix = self.levels.num_prefix
        return {(i, False): Attention(_weights(blocks[i].attn, x), prefix, grid) for i, x in entering.items()}

    def _pad(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C Hp Wp"]:
        """Pad the images at the right and bottom with the mean colour, and convert them to the network's dtype."""
        height, width = _size(images)
        if not numbers(height, width) and (self.shifts or self.config.rebuild):
            what = "cuts and shifts its windows by a rule" if self.shifts else "is built again"
            raise ValueError(
                f"{self.spec.name} {what} for each image size, so that no graph serves several. Export one height and "
                "width; the batch may be dynamic"
            )
        if (self.config.rebuild or self.sizes is None) and (height, width) == self.config.image_size:
            return images.to(self._dtype)
        if self.sizes is None:
            native = " x ".join(map(str, self.config.image_size))
            raise ValueError(
                f"images are {height} x {width}; {self.spec.name} accepts only images of {native}, because its weights "
                "depend on the number of patches. Resize the images, as backbone.preprocess does"
            )
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

    def _plain_blocks(self, model: Any) -> list[Any]:
        """Return the blocks of a ViT whose attention is softmax(q kᵀ) over all tokens."""
        block_class, attention_class = timm_class("ViT block"), timm_class("ViT attention")
        blocks = list(getattr(model, "blocks", ()))
        plain = [type(block) is block_class and type(block.attn) is attention_class for block in blocks]
        if len(blocks) != len(self.dims) or not all(plain):
            raise ValueError(
                f"{self.spec.name} has no attention map over the image: a Swin attends within windows that shift from "
                "block to block, a CNN not at all. Use a ViT or a hybrid"
            )
        return blocks


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _create(config: TimmConfig, size: Size | None = None) -> Any:
    """Build the network, untrained, on the default device. `size`: the image size, if it is not the network's own."""
    import timm

    arguments = dict(config.arguments)
    if size is not None:
        arguments["img_size"] = size
    if config.channels != 3:
        arguments["in_chans"] = config.channels
    classes = 0 if config.projection is None else config.projection.num_classes
    model = timm.create_model(config.architecture, pretrained=False, num_classes=classes, **arguments)
    if config.projection is not None:
        config.projection.set_pool(model)
    _replace_cosine_attention(model)
    if config.windows != "timm":
        _replace_windows(model, by_size=config.windows == "sized")
    if not config.final_norm:
        owner: Any = model if isinstance(getattr(model, "norm", None), nn.Module) else model.head
        owner.norm = nn.Identity()
    height, width = config.image_size
    if size is None and config.rebuild and height != width:
        fit_to_grid(model, config.image_size)
    return model


def _trial_size(config: TimmConfig) -> Size:
    """Return the size of the image that shows what the network returns: small, if it is known to accept other sizes."""
    if config.rebuild or not config.any_size or config.size_multiple is None:
        return config.image_size
    side = config.size_multiple * -(-TRIAL // config.size_multiple)
    return (side, side) if side < min(config.image_size) else config.image_size


def _projects(config: TimmConfig) -> bool:
    """Return whether the network's classifier is the projection."""
    return config.projection is not None and config.projection.kind == "classifier"


def _for_size(config: TimmConfig, size: Size) -> Any:
    return for_size(partial(_create, config), size)


def _create_on_cpu(config: TimmConfig) -> Any:
    """Build the network on the CPU. If torch's default device is the meta device, leave out initial values.

    The meta device would lose buffers that no checkpoint holds, such as Swin's position tables.
    """
    empty = torch.get_default_device().type == "meta"
    with torch.device("cpu"), WithoutInit() if empty else nullcontext():
        return _create(config)


def without_weights(config: TimmConfig, size: Size | None = None) -> Any | None:
    """Build the network on the meta device, or return None if it cannot run there: it reads values of tensors, or has a
    recurrent layer, which that device computes step by step in Python."""
    try:
        with torch.device("meta"):
            with WithoutInit():
                model = (_create(config) if size is None else _for_size(config, size)).eval()
            if any(isinstance(module, nn.RNNBase) for module in model.modules()):
                return None
            level_maps(model, size or _trial_size(config))
    except (NotImplementedError, RuntimeError):
        return None
    return model


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
        raise ValueError(f"TimmConfig: {type(model).__name__} is not a Swin; want windows='timm'")
    stages: Any = model.layers
    for stage in stages:
        for i, block in enumerate(stage.blocks):
            stage.blocks[i] = WindowBlock(block, by_size, post_norm)
