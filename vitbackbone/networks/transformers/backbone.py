"""Image encoders of transformers that have no native configuration, behind the same contract.

A layer is a block of the encoder, or a stage of a hierarchy, each with its own width and stride. If the encoder's own
output is neither the last block's output nor this output with the final norm, it is one more layer.

Axes: `B` batch, `P` tokens that are not patches, `D` width, `h w` patch grid, `N` tokens, `H W` pixels.
"""

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
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
    check_images,
    describe_settings,
    float32_default,
    numbers,
    one_by_one,
    pool_cls,
    pool_mean,
)
from vitbackbone.images import Preprocess
from vitbackbone.model import Indivisible
from vitbackbone.networks.timm.sizes import Sizes, find_sizes
from vitbackbone.networks.transformers.build import build, make_config
from vitbackbone.networks.transformers.channels import widen
from vitbackbone.networks.transformers.input import feed_of
from vitbackbone.networks.transformers.layout import Size, as_map, grid_of, others
from vitbackbone.networks.transformers.parts import (
    channels_of,
    fill_buffers,
    float_dtype,
    image_size,
    set_image_size,
    setting,
    timm_size,
)
from vitbackbone.networks.transformers.runs import PATCH, Encoder, Shapes
from vitbackbone.networks.transformers.towers import config_of, find_towers, inner_towers, joins


@dataclass(frozen=True)
class TransformersConfig:
    """The configuration of a `TransformersBackbone`. Raises `ValueError` on values that contradict each other."""

    settings: str  # the model's config.json
    architecture: str = ""  # the class that the checkpoint was saved from; "" means the model type's own
    tower: str = ""  # path of the image encoder in the model; "" means the first one that `find_towers` returns
    image_size: Size | None = None  # (H, W) that the weights were trained at; None reads it from the encoder's config
    indivisible: Indivisible = "pad"  # sizes that need padding: pad right and bottom, or refuse
    channels: int | None = None  # channels of the images; None means the encoder's own

    def __post_init__(self) -> None:
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"in_chans={self.channels}; want at least 1")
        if not isinstance(json.loads(self.settings), dict):
            raise ValueError("TransformersConfig: settings is not an object; want the text of a config.json")

    @property
    def model_type(self) -> str:
        """The model type of the whole model."""
        return str(json.loads(self.settings).get("model_type"))


def build_tower(config: TransformersConfig) -> tuple[Any, str]:
    """Return a whole model, with its parameters on the meta device, and the path of its image encoder.

    Its tables of positions have the shapes for `config.image_size` if the encoder's config holds its image size.
    Raises `ValueError` if transformers cannot build the model, or if it has no image encoder at `config.tower`.
    """
    model = build(make_config(config.settings), config.architecture)
    towers = find_towers(model)
    if not towers:
        raise ValueError(
            f"transformers' {config.model_type} has no image encoder of its own: no part of {type(model).__name__} "
            "takes only pixels"
        )
    tower = config.tower or towers[0]
    if tower not in towers and tower not in [path for each in towers for path in inner_towers(model, each)]:
        raise ValueError(f"tower={config.tower!r}; {config.model_type} has the image encoders {', '.join(towers)}")
    if config.image_size is not None and set_image_size(config_of(model, tower), config.image_size):
        try:
            model = build(model.config, config.architecture)
        except ValueError:  # an encoder of only squares keeps the size of its config
            model = build(make_config(config.settings), config.architecture)
    return model, tower


class TransformersBackbone(BackboneModule):
    """An image encoder of transformers that returns features. The encoder is `model`, with transformers' own names.

    `norm=True` applies the encoder's final norm, if its own output is its last block's output with a norm.
    `pooled` of the last layer is the encoder's `pooler_output` if it has one. Otherwise it is the CLS token, or the
    mean of the patches where there is no CLS token.

    An image runs at its own size if the encoder accepts that size. Otherwise the image is padded with the mean colour
    at the right and bottom, to the smallest size that fits. An encoder that accepts only its own size says so.

    `model`: the encoder with its weights, and `settings`, its config in transformers; None builds an untrained one.
    Raises `ValueError` if transformers has no such encoder, or if its layers are not maps of an image.
    """

    @float32_default()
    def __init__(
        self,
        config: TransformersConfig,
        preprocess: Preprocess | None = None,
        name: str = "transformers",
        model: nn.Module | None = None,
        settings: Any = None,
    ) -> None:
        super().__init__()
        if model is None:
            whole, path = build_tower(config)
            config = replace(config, tower=path)
            model, settings = untrained(whole.get_submodule(path)), config_of(whole, path)
        self.config = config
        built = timm_size(model) or image_size(settings)
        native = config.image_size or built
        feed = feed_of(model, settings, config.model_type, built)
        if config.channels not in (None, channels_of(settings)):
            if feed.processor is not None:
                raise ValueError(f"in_chans={config.channels}: {type(feed.processor).__name__} packs 3 channels")
            widen(model, settings, config.channels, feed.patch)
            feed = feed_of(model, settings, config.model_type, built)
        self.channels = (channels_of(settings),)
        self.model: Any = model
        self.encoder = Encoder(model, settings, feed)
        whole = native
        shapes, self.sizes, native = _measure(self.encoder, native)
        if next(model.parameters()).device.type != "meta":
            for layout in shapes.layers:
                self.encoder.places(native, layout, torch.device("cpu"))
            self.encoder.known.clear()  # initial weights may hide a place
        self.preprocess = preprocess or Preprocess(image_size=native)
        if native < whole:
            self.preprocess = self.preprocess.in_patches(feed.patch)
        self.shapes = shapes
        self.has_cls = shapes.layers[-1].others > 0 and any(
            "cls" in key.rpartition(".")[2] or "class" in key.rpartition(".")[2] for key, _ in model.named_parameters()
        )
        dims, strides = tuple(each.dim for each in shapes.layers), tuple(each.stride for each in shapes.layers)
        self.spec = BackboneSpec(
            name=name,
            dim=dims[-1],
            depth=len(dims),
            num_heads=setting(settings, "num_attention_heads", "num_heads", "encoder_attention_heads") or 0,
            stride=strides[-1],
            num_registers=shapes.layers[-1].others - int(self.has_cls),
            has_cls=self.has_cls,
            has_norm=shapes.norm is not None,
            image_size=native,
            in_chans=self.channels[0],
            settings=describe_settings(config),
            dims=dims,
            strides=strides,
            pooled_dim=shapes.pooled or dims[-1],
            pooled_dims=(*dims[:-1], shapes.pooled or dims[-1]),
        )

    def forward(self, images: Images, asked: Asked | None = None) -> Any:
        """See `BackboneModule`. The images of a list run one by one."""
        asked = asked or self.last
        check_images(images, self.channels)
        if asked.part == "attention":
            return asked.answer(self._maps(images, asked))
        return asked.answer(one_by_one(partial(self._features, wanted=set(asked.wanted)), images))

    def _features(self, images: Float[Tensor, "B C H W"], wanted: Set[Wanted]) -> Mapping[Wanted, Features]:
        padded = self._pad(images)
        last = self.spec.depth - 1
        whole = any(layer == last and (norm or not self.spec.has_norm) for layer, norm in wanted)
        run = self.encoder.run(padded, self.shapes, {layer for layer, _ in wanted}, whole)
        outputs: dict[Wanted, Features] = {}
        for layer, norm in wanted:
            own = layer == last and norm == self.spec.has_norm
            tensor = run.layers[layer]
            if norm:
                tensor = self.model.get_submodule(self.shapes.norm)(tensor)
            outputs[layer, norm] = self._unpack(tensor, layer, images, padded)
            if own and run.pooled is not None:
                outputs[layer, norm] = replace(outputs[layer, norm], pool=Pooled(run.pooled))
        return outputs

    def _unpack(self, tensor: Tensor, layer: int, images: Tensor, padded: Tensor) -> Features:
        """Turn a layer's output for `padded` into the `Features` of `images`."""
        layout = self.shapes.layers[layer]
        size = _size(padded)
        places = self.encoder.places(size, layout, padded.device)
        patches, rest = as_map(tensor, layout, size, images.shape[0], places)
        geometry = Geometry.of(images, layout.stride)
        h, w = geometry.grid
        cls = rest[:, 0] if self.has_cls and layout.others else None
        if layout.others != self.shapes.layers[-1].others:  # a hierarchy without prefix tokens but in its last stage
            rest = tensor.new_zeros(images.shape[0], self.spec.num_prefix, layout.dim)
            cls = rest[:, 0] if self.has_cls else None
        registers = rest[:, int(self.has_cls) :]
        pool = pool_cls if self.has_cls else pool_mean
        return Features(cls, registers, patches[:, :, :h, :w], geometry, pool)

    def _maps(self, images: Images, asked: Asked) -> Mapping[Wanted, Attention]:
        """Return the attention maps of each requested layer, if transformers returns them for all tokens."""
        if not isinstance(images, Tensor):
            raise ValueError("attention maps of a list of images do not stack; call once per image")
        padded = self._pad(images)
        size, layout = _size(padded), self.shapes.layers[-1]
        tokens = grid_of(size, layout.stride)[0] * grid_of(size, layout.stride)[1] + layout.others
        found = self.encoder.attentions(padded)
        square = [each.ndim == 4 and tuple(each.shape[2:]) == (tokens, tokens) for each in found]
        if len(found) < self.spec.depth or not all(square):
            raise ValueError(
                f"{self.spec.name} has no attention map over the image that transformers returns: its layers attend "
                "within windows, or they are not attention"
            )
        places = self.encoder.places(size, layout, padded.device)
        order = torch.cat([others(places, tokens), places])
        grid = grid_of(size, layout.stride)
        return {
            (i, False): Attention(found[i][:, :, order][:, :, :, order], layout.others, grid) for i, _ in asked.wanted
        }

    def _pad(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C Hp Wp"]:
        """Pad the images at the right and bottom with the mean colour, and convert them to the network's dtype."""
        height, width = _size(images)
        if not numbers(height, width):
            raise ValueError(
                f"{self.spec.name} runs by transformers' code, and its patches are found for each image size, so that "
                "no graph serves several. Export one height and width; the batch may be dynamic"
            )
        if self.sizes is None:
            if (height, width) != self.spec.image_size:
                native = " x ".join(map(str, self.spec.image_size))
                raise ValueError(f"images are {height} x {width}; {self.spec.name} accepts only images of {native}")
            return images.to(float_dtype(self.model))
        padded = self.sizes.padded((height, width))
        if padded != (height, width) and self.config.indivisible == "refuse":
            raise ValueError(
                f"images are {height} x {width}, which {self.sizes.multiple} does not divide; "
                f"resize them to {padded[0]} x {padded[1]}, or load the backbone with indivisible='pad'"
            )
        images = F.pad(images, (0, padded[1] - width, 0, padded[0] - height))
        return images.to(float_dtype(self.model))


def _size(images: Tensor) -> Size:
    return images.shape[-2], images.shape[-1]


def untrained(model: Any) -> nn.Module:
    """Give an encoder whose parameters are on the meta device its initial weights, on the CPU."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device.type == "meta":
                empty = torch.zeros(parameter.shape, dtype=parameter.dtype)
                setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
    fill_buffers(model)
    if hasattr(model, "init_weights"):
        model.init_weights()
    return model.eval()


def _first_run(encoder: Encoder, native: Size) -> tuple[Encoder, Shapes, Size]:
    """Return the encoder that trial runs take, the shapes of its layers, and its own size in whole patches."""
    first, errors = encoder.feed, []
    for feed in first.alternatives():
        encoder.feed = feed
        for size in _whole(native, feed.unit, setting(encoder.config, *PATCH)):
            for trial in (encoder.on_meta(), encoder):
                try:
                    shapes = trial.shapes(size)
                    encoder.first_stage = trial.first_stage
                    return trial, shapes, size
                except Exception as error:  # one that reads values of tensors fails on the meta device, in its way
                    errors.append(error)
    encoder.feed = first
    name = type(encoder.model).__name__
    if joins(encoder.model):
        raise ValueError(f"{name} has no image encoder of its own: it does not run on pixels alone") from errors[1]
    raise ValueError(
        f"the image encoder does not run on an image of {native[0]} x {native[1]}: {errors[1]}"
    ) from errors[1]


def _whole(native: Size, unit: int, patch: int | None) -> list[Size]:
    """Return an encoder's own size in whole units, and then in the whole patches that fit, if these are fewer pixels:
    most encoders drop the rest of an image at the bottom and right."""
    up = (-(-native[0] // unit) * unit, -(-native[1] // unit) * unit)
    if patch is None or unit > 1 or min(native) < patch or not (native[0] % patch or native[1] % patch):
        return [up]
    return [up, (native[0] - native[0] % patch, native[1] - native[1] % patch)]


def _measure(encoder: Encoder, native: Size) -> tuple[Shapes, Sizes | None, Size]:
    """Return the shapes of an encoder's layers at its own size, the sizes that it accepts, and its own size.

    Trial runs find both, on a copy on the meta device if the encoder runs there.
    """
    trial, shapes, native = _first_run(encoder, native)
    strides = [layer.stride for layer in shapes.layers]

    def fits(size: Size) -> bool:
        try:
            return trial.shapes(size).layers == shapes.layers
        except Exception:  # every encoder has its own error for a size that it does not accept
            return False

    if encoder.feed.unit > 1:
        patch, unit = encoder.feed.patch, encoder.feed.unit
        # Some encoders take grids that the merger behind them does not divide
        fitting = [step for step in (patch, unit) if fits((native[0] + step, native[1] + unit + step))]
        return shapes, Sizes(fitting[0], fitting[0]) if fitting else None, native
    if trial is encoder:  # each trial costs a whole run
        multiple = max(strides)
        wider = (-(-native[0] // multiple) * multiple, (-(-native[1] // multiple) + 1) * multiple)
        return shapes, Sizes(multiple, multiple) if fits(wider) else None, native
    return shapes, find_sizes(fits, native, max(strides)), native
