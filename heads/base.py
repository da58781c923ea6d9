"""What every head is, how several share one forward of a backbone, and how they are named, made and kept.

    heads = {"classes": create_head("mlp", backbone.spec, num_classes=10), ...}
    attach(backbone, heads)(images)["classes"]

Axes: `B` batch, `D` width, `h w` patch grid, `H W` pixels.
"""

import difflib
import importlib
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from os import PathLike
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn
from torch.nn import functional as F

from heads.names import BUILT_IN
from heads.records import read_record, write_record
from vitbackbone import BackboneModule, BackboneSpec, Features, Geometry, any_size, fingerprint

# Of a depth: where four layers are taken from evenly. DINOv2 takes other ones of its 24-block model than a quarter
# each, and its depth and segmentation heads were trained on them (facebookresearch/dinov2, hub/depthers.py).
EVEN4 = {24: (4, 11, 17, 23)}


def _even4(depth: int) -> tuple[int, ...]:
    return EVEN4.get(depth, tuple((i + 1) * depth // 4 - 1 for i in range(4)))


LAYERS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "last": lambda depth: (-1,),
    "penultimate": lambda depth: (-2,),
    "last4": lambda depth: (-4, -3, -2, -1),
    "even4": _even4,
}


@dataclass(frozen=True)
class Needs:
    """What a head reads of a backbone. Raises `ValueError` on a name of layers that is none."""

    layers: tuple[int, ...] | str = "last"  # block indices, negative from the end; or a name in `LAYERS`
    norm: bool = True  # whether the backbone's final norm is applied to each
    prefix: bool = False  # whether the CLS token is read
    grid_multiple: int = 1  # what the height and width of the map must be divided by

    def __post_init__(self) -> None:
        if isinstance(self.layers, str) and self.layers not in LAYERS:
            raise ValueError(f"Needs: layers={self.layers!r}; want indices, or one of {', '.join(LAYERS)}")

    def resolve(self, spec: BackboneSpec) -> tuple[int, ...]:
        """0-based indices of the layers. Raises `ValueError` where the backbone has not so many."""
        layers = LAYERS[self.layers](spec.depth) if isinstance(self.layers, str) else self.layers
        if min(layers, default=0) < -spec.depth:
            raise ValueError(f"{spec.name} has {spec.depth} layers; a head that reads {self.layers!r} wants more")
        return tuple(spec.indices(layers))


class Head(nn.Module):
    """What consumes features. A subclass takes a spec and its options, and defines `forward(*features)`, which is
    given the `Features` of each layer of `needs`, in that order. It never sees the backbone.

        class Mean(Head):
            def __init__(self, spec: BackboneSpec, num_classes: int) -> None:
                super().__init__(spec, Needs("last"))
                self.linear = nn.Linear(spec.dim, num_classes)

            def forward(self, features: Features) -> Tensor:
                return self.linear(features.tokens.mean(dim=1))
    """

    name: str = ""  # by which `create_head` made it
    config: Mapping[str, Any] = {}  # the options it was given

    def __init__(self, spec: BackboneSpec, needs: Needs) -> None:
        super().__init__()
        self.spec = spec
        self.needs = needs
        self.layers = needs.resolve(spec)

    def bind(self, backbone: BackboneModule) -> None:
        """Called when the head is attached. For the rare head that runs blocks of the backbone itself (EoMT)."""


class DenseHead(Head):
    """A head whose output is a map at the size of the images: a subclass defines `maps`.

    The output is (B, K, H, W), the padding cropped away. Images of different sizes are run one by one, as batch norm
    and convolutions would mix their padding in, and their maps are filled up with zeros at the right and bottom.
    """

    @abstractmethod
    def maps(self, *features: Features) -> Float[Tensor, "B K h w"]:
        """The output on some grid that covers what the first of the feature maps covers, padding included."""

    def forward(self, *features: Features) -> Float[Tensor, "B K H W"]:
        geometry = features[0].geometry
        if geometry.one_size:
            return enlarge(self.maps(*features), geometry)
        alone = [self(*(each.image(i) for each in features)) for i in range(len(geometry.sizes))]
        height, width = geometry.size
        return torch.cat([F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2])) for x in alone])


def enlarge(maps: Float[Tensor, "B K h w"], geometry: Geometry) -> Float[Tensor, "B K H W"]:
    """Maps of images of one size, padding included, to that size: bilinear, then the padding cropped away."""
    height, width = geometry.size
    maps = F.interpolate(maps, size=geometry.padded_size, mode="bilinear", align_corners=False)
    return maps[:, :, :height, :width]


# ---- several heads, one forward -----------------------------------------------------------------------------------


class Attached(nn.Module):
    """A backbone and its heads: called on images, it returns the output of each head by its name."""

    def __init__(self, backbone: BackboneModule, heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        wanted = {name: [(layer, head.needs.norm) for layer in head.layers] for name, head in heads.items()}
        self.wanted = wanted
        self.union = list(dict.fromkeys(each for of_one in wanted.values() for each in of_one))

    def forward(self, images: Tensor | list[Tensor]) -> dict[str, Any]:
        """The output of each head; see `features`."""
        with any_size():
            return {name: self.heads[name](*given) for name, given in self.features(images).items()}

    def features(self, images: Tensor | list[Tensor]) -> dict[str, tuple[Features, ...]]:
        """What each head is given. The blocks are run once, and none past the deepest that a head reads.

        `images`: as for the backbone. Raises `ValueError` on images that give a map which a head cannot divide.
        """
        sizes = [images.shape[-2:]] if isinstance(images, Tensor) else {image.shape[-2:] for image in images}
        for name, head in self.heads.items():
            for height, width in sizes:
                _check_grid(name, cast(Head, head), (height, width), "resize the images")
        layers, norms = zip(*self.union, strict=True)
        found = dict(zip(self.union, self.backbone.forward_layers(images, layers, norms), strict=True))
        return {name: tuple(found[each] for each in wanted) for name, wanted in self.wanted.items()}


def attach(backbone: BackboneModule, heads: Mapping[str, Head], image_size: tuple[int, int] | None = None) -> Attached:
    """One module of a backbone and its heads, for one forward of them all.

    `image_size`: (H, W) that the images will have; by default the backbone's own. A head that divides the map is held
    against it here, and against the images at each call.

    Raises `ValueError` on a head that was made for another backbone, reads a CLS token or a norm that this one lacks,
    or cannot divide the map; it says which head, and what to change.
    """
    if not heads:
        raise ValueError("attach: no heads; want at least one, by name")
    for name, head in heads.items():
        if not isinstance(head, Head):
            raise ValueError(f"head {name!r} is a {type(head).__name__}; want a heads.Head")
        if not name or "." in name or hasattr(nn.ModuleDict, name):
            raise ValueError(f"{name!r} cannot name a head: torch names parameters by it")
        _check(name, head, backbone.spec, image_size or backbone.spec.image_size)
        head.bind(backbone)
    return Attached(backbone, heads)


def _check(name: str, head: Head, spec: BackboneSpec, image_size: tuple[int, int]) -> None:
    mine, theirs = _shape(head.spec), _shape(spec)
    if mine != theirs:
        different = ", ".join(f"{key} {mine[key]}, not {theirs[key]}" for key in mine if mine[key] != theirs[key])
        raise ValueError(
            f"head {name!r} was made for {head.spec.name}, which is not {spec.name}: {different}. "
            "Make it with create_head(name, backbone.spec, ...)"
        )
    if head.needs.prefix and not spec.has_cls:
        raise ValueError(f"head {name!r} reads the CLS token, and {spec.name} has none; take a head that reads patches")
    if head.needs.norm and not spec.norms(head.layers):
        raise ValueError(
            f"head {name!r} reads layers {list(head.layers)} with the final norm, and {spec.name} has none for them; "
            "make it with norm=False"
        )
    _check_grid(name, head, image_size, "pass attach the image_size=(H, W) that you will run")


def _check_grid(name: str, head: Head, size: tuple[int, int], remedy: str) -> None:
    multiple = head.needs.grid_multiple
    if multiple == 1:
        return
    for stride in {head.spec.strides[layer] for layer in head.layers}:
        h, w = Geometry((size,), stride).grid
        if h % multiple or w % multiple:
            step = stride * multiple
            better = " x ".join(str(-(-side // step) * step) for side in size)
            raise ValueError(
                f"head {name!r} wants a map whose sides {multiple} divides; images of {size[0]} x {size[1]} give "
                f"{h} x {w} patches. {remedy[0].upper()}{remedy[1:]}: {better}, for example"
            )


def _shape(spec: BackboneSpec) -> dict[str, object]:
    """What a head sizes itself by."""
    return {key: getattr(spec, key) for key in ("dims", "strides", "num_registers", "has_cls", "pooled_dim")}


B = TypeVar("B", bound=BackboneModule)


def freeze(backbone: B) -> B:
    """The same backbone without gradients, in eval mode for good: a `.train()` of what it is part of leaves it there,
    so that batch norms keep their statistics and no path is dropped."""
    backbone.frozen = True
    backbone.requires_grad_(False)
    backbone.eval()
    return backbone


# ---- by name ------------------------------------------------------------------------------------------------------

GROUP = "vitbackbone.heads"  # of entry points: name = "package.module:Class"

_registered: dict[str, type[Head]] = {}
H = TypeVar("H", bound=type[Head])


def register_head(name: str) -> Callable[[H], H]:
    """Decorates a subclass of `Head`, which `create_head` then knows. An installed package needs no call: it names its
    heads in the entry-point group `vitbackbone.heads`. Raises `ValueError` on a name that is taken."""

    def register(head: H) -> H:
        if not (isinstance(head, type) and issubclass(head, Head)):
            raise ValueError(f"register_head({name!r}) was given {head!r}; want a subclass of heads.Head")
        known = _registered.get(name, head)
        # A module that is loaded again, as in a notebook, brings the same class anew.
        if name in BUILT_IN or (known.__module__, known.__qualname__) != (head.__module__, head.__qualname__):
            raise ValueError(f"there is a head {name!r} already; choose another name")
        _registered[name] = head
        return head

    return register


def list_heads() -> list[str]:
    """The names that `create_head` knows: built in, registered, and of installed packages."""
    return sorted({*BUILT_IN, *_registered, *_installed()})


def create_head(name: str, spec: BackboneSpec, **config: Any) -> Any:
    """A head by its name, sized for a backbone, with its options.

    Raises `ValueError` on an unknown name, an option that the head does not have, and one that is missing.
    """
    head_class = _find(name)
    options = dict(list(inspect.signature(head_class).parameters.items())[1:])  # but for the spec
    stray = [f"has no option {key!r}" for key in config if key not in options]
    lacking = [
        f"wants {key}" for key, option in options.items() if option.default is option.empty and key not in config
    ]
    if stray or lacking:
        known = ", ".join(map(str, options.values())) or "none"
        raise ValueError(f"head {name!r} {' and '.join(stray + lacking)}; its options are {known}")
    head = head_class(spec, **config)
    head.name, head.config = name, config
    return head


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _find(name: str) -> type[Head]:
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if name in _registered:
        return _registered[name]
    installed = _installed()
    if name not in installed:
        close = difflib.get_close_matches(name, list_heads(), n=3, cutoff=0.5)
        hint = f", did you mean {' or '.join(map(repr, close))}?" if close else "."
        raise ValueError(f"unknown head {name!r}{hint} Want one of {', '.join(list_heads())}")
    found = installed[name].load()
    if not (isinstance(found, type) and issubclass(found, Head)):
        raise ValueError(f"head {name!r} of {installed[name].value} is no subclass of heads.Head")
    return found


# ---- on disk ------------------------------------------------------------------------------------------------------


def save_head(head: Head, folder: str | PathLike[str], backbone: BackboneModule) -> None:
    """Writes `head.safetensors` and `head.json` to a folder, made if missing; a head there is replaced.

    The record holds the fingerprint of the backbone that the head was fitted to: of its weights as they are now.
    Raises `ValueError` on a head that `create_head` did not make, as it could not be made again, and on options that
    JSON does not hold.
    """
    if not head.name:
        raise ValueError(f"save_head: this {type(head).__name__} has no name; make it with create_head")
    tensors = safetensors.save({key: value.contiguous() for key, value in head.state_dict().items()})
    record = {
        "head": head.name,
        "config": dict(head.config),
        "backbone": {"name": backbone.spec.name, "fingerprint": fingerprint(backbone)},
    }
    try:
        write_record(folder, "head", tensors, record)
    except (TypeError, ValueError) as error:
        raise ValueError(f"save_head: the options of {head.name!r} do not go into JSON: {error}") from error


def load_head(folder: str | PathLike[str], backbone: BackboneModule) -> Any:
    """The head that `save_head` wrote, in eval mode.

    Raises `OSError` if the files cannot be read, `ValueError` if they are not what `save_head` wrote, or if the
    backbone is not the one that the head was fitted to.
    """
    try:
        record, data = read_record(folder, "head")
        name, config, fitted = record["head"], record["config"], record["backbone"]
        fitted_name, fitted_to = fitted["name"], fitted["fingerprint"]
        tensors = safetensors.load(data)
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no head as save_head writes it: {error!r}") from error
    if fitted_to != fingerprint(backbone):
        raise ValueError(
            f"the head in {folder} was fitted to {fitted_name} ({fitted_to[:12]}), and this is {backbone.spec.name} "
            f"({fingerprint(backbone)[:12]}); load that backbone, with the very weights, or fit the head anew"
        )
    head = create_head(name, backbone.spec, **config)
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"the tensors in {folder} do not fit head {name!r}: {error}") from error
    return head.eval()
