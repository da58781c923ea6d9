"""What every head is, how several share one forward of a backbone, and how they are named, made and kept.

    heads = {"classes": create_head("mlp", backbone.spec, num_classes=10), ...}
    attach(backbone, heads)(images)["classes"]

Axes: `B` batch, `D` width, `h w` patch grid, `H W` pixels.
"""

import importlib
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from heads import parallel
from heads.names import BUILT_IN
from heads.options import Count, Layers, Size, check, checked, did_you_mean, hints_of, signature_text
from heads.unread import Wanted, rest
from vitbackbone import Backbone, BackboneModule, BackboneSpec, Features, Geometry, any_size, float32_default

# The four layers that "even4" takes of a backbone of some depths. DINOv2 takes other ones of its 24-block model than a
# quarter each, and its depth and segmentation heads were trained on them (facebookresearch/dinov2, hub/depthers.py).
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
    """What a head reads of a backbone. Raises `ValueError` on values that cannot be."""

    layers: Sequence[int] | str = "last"  # block indices, negative from the end; or a name in `LAYERS`
    norm: bool = True  # whether the backbone's final norm is applied to each
    prefix: bool = False  # whether the CLS token is read
    grid_multiple: Count = 1  # what the height and width of the map must be divided by
    pooled: bool = True  # whether `features.pooled` is read: if not, no gradient is kept for the backbone's pooling

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given = check("Needs", hints_of(type(self).__init__) | {"layers": Layers}, given)
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(given["layers"]))
        object.__setattr__(self, "grid_multiple", given["grid_multiple"])

    def resolve(self, spec: BackboneSpec) -> tuple[int, ...]:
        """0-based indices of the layers. Raises `ValueError` if the backbone does not have them all, or if one is named
        twice."""
        layers = LAYERS[self.layers](spec.depth) if isinstance(self.layers, str) else tuple(self.layers)
        wanted = max(len(layers), -min(layers)) if isinstance(self.layers, str) else -min(layers)
        if wanted > spec.depth:
            raise ValueError(
                f"{spec.name} has {spec.depth} layers; a head that reads {self.layers!r} wants more, {wanted} at least"
            )
        indices = tuple(spec.indices(layers))
        if len(set(indices)) < len(indices):
            raise ValueError(f"layers={list(layers)} name a layer of {spec.name} twice; want each layer once")
        return indices


class Head(nn.Module):
    """What consumes features. A subclass takes a spec and its options, and defines `forward(*features)`, which is
    given the `Features` of each layer of `needs`, in that order. It never sees the backbone.

        class Mean(Head):
            def __init__(self, spec: BackboneSpec, num_classes: int) -> None:
                super().__init__(spec, Needs("last"))
                self.linear = nn.Linear(spec.dim, num_classes)

            def forward(self, features: Features) -> Tensor:
                return self.linear(features.tokens.mean(dim=1))

    The annotations of its options are checked before its constructor runs: `heads.options` has types with bounds.
    """

    name: str = ""  # by which `create_head` made it
    config: Mapping[str, Any] = {}  # the options it was given

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = checked(cls.__init__)  # type: ignore[method-assign]

    def __init__(self, spec: BackboneSpec, needs: Needs) -> None:
        super().__init__()
        self.spec = spec
        self.needs = needs
        self.layers = needs.resolve(spec)

    @property
    def used(self) -> frozenset[Wanted]:
        """Each layer of the backbone that the head runs or reads, and whether with the final norm."""
        return frozenset((layer, self.needs.norm) for layer in self.layers)

    def loss(self, targets: Any, *features: Features) -> Tensor:
        """What the head is trained by, given targets and the `Features` that its `forward` takes.

        Raises `ValueError`: a subclass defines it, if its training has one usual loss.
        """
        raise ValueError(f"{_called(self)} has no loss of its own; make one of its output, model(images)[name]")

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
        self.used = frozenset(each for head in heads.values() for each in head.used)
        self.pooled = any(head.needs.pooled for head in heads.values())

    def forward(self, images: Tensor | list[Tensor], targets: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The output of each head by its name; given `targets`, the loss of each head instead.

        `images`: as for `features`. `targets`: of each head what its `loss` takes, labels for a segmenter. Under DDP
        and FSDP the loss must be computed here, in the forward that they wrap: it is then the loss over the batches of
        all processes, and their gradients are those of one process with all the images.

        Raises `ValueError` as `features` and `Head.loss` do, and on targets that are not one for each head.
        """
        if targets is not None:
            self._check_targets(targets)
        if torch.compiler.is_compiling():
            with any_size():
                return self._run(images, targets)
        with parallel.together(self, _sizes(images)):
            return self._run(images, targets)

    def _run(self, images: Tensor | list[Tensor], targets: Mapping[str, Any] | None) -> dict[str, Any]:
        given = self.features(images)
        if targets is None:
            return {name: self.heads[name](*each) for name, each in given.items()}
        for head in self.heads.values():
            parallel.as_fsdp_forward(head, "loss")
        return {name: cast(Head, self.heads[name]).loss(targets[name], *each) for name, each in given.items()}

    def loss(self, images: Tensor | list[Tensor], targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """The loss of each head by its name: `self(images, targets)`, which DDP's wrapper is called with."""
        return self(images, targets)

    def features(self, images: Tensor | list[Tensor]) -> dict[str, tuple[Features, ...]]:
        """What each head is given. The blocks are run once, and none past the deepest that a head reads.

        `images`: as for the backbone. Raises `ValueError` on images that give a map which a head cannot divide, and
        `RuntimeError` in training under DDP, if this is called past DDP's forward.
        """
        parallel.refuse_past_ddp(self)
        for name, head in self.heads.items():
            for size in _sizes(images):
                _check_grid(name, cast(Head, head), size, "resize the images")
        layers, norms = zip(*self.union, strict=True)
        parallel.as_fsdp_forward(self.backbone, "forward_layers")
        found = dict(zip(self.union, self.backbone.forward_layers(images, layers, norms), strict=True))
        return {name: tuple(found[each] for each in wanted) for name, wanted in self.wanted.items()}

    def _check_targets(self, targets: Mapping[str, Any]) -> None:
        names = ", ".join(self.heads)
        if not isinstance(targets, Mapping):
            raise ValueError(
                f"targets is a {type(targets).__name__}; want a dict of them by the name of a head: {names}"
            )
        if set(targets) != set(self.heads):
            given = ", ".join(map(str, targets)) or "no head"
            raise ValueError(f"targets are for {given}; want one for each head: {names}")


def attach(backbone: BackboneModule, heads: Mapping[str, Head], image_size: tuple[int, int] | None = None) -> Attached:
    """One module of a backbone and its heads, for one forward of them all.

    `image_size`: (H, W) that the images will have; by default the backbone's own. A head that divides the map is held
    against it here, and against the images at each call.

    Parameters of the backbone that no head reads get no gradient from here on, such as blocks deeper than the deepest
    layer read. Heads that are attached later and read them turn it on again.

    Raises `ValueError` on a head that was made for another backbone, reads a CLS token or a norm that this one lacks,
    or cannot divide the map; it says which head, and what to change.
    """
    check_heads(backbone, heads, image_size)
    attached = Attached(backbone, heads)
    rest(backbone, attached)
    return attached


def check_heads(backbone: BackboneModule, heads: Mapping[str, Head], image_size: tuple[int, int] | None = None) -> None:
    """Bind the heads to the backbone. Raises `ValueError` as `attach` does."""
    check_backbone("attach", backbone)
    if not isinstance(heads, Mapping):
        raise ValueError(
            f"attach: heads is a {type(heads).__name__}; want a dict of heads by names of yours, such as {{'it': head}}"
        )
    if not heads:
        raise ValueError("attach: no heads; want at least one, by name")
    size = check("attach", {"image_size": Size | None}, {"image_size": image_size})["image_size"]
    for name, head in heads.items():
        if not isinstance(head, Head):
            raise ValueError(f"head {name!r} is a {type(head).__name__}; want a heads.Head")
        if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name):
            raise ValueError(f"{name!r} cannot name a head: torch names parameters by it")
        _check(name, head, backbone.spec, size or backbone.spec.image_size)
        head.bind(backbone)


def check_backbone(caller: str, backbone: object) -> None:
    """Raise `ValueError` on what is no backbone, in the words of the function that was given it."""
    if isinstance(backbone, nn.Module) and isinstance(backbone, Backbone):
        return
    hint = "that is the head's part; " if isinstance(backbone, Head) else ""
    raise ValueError(
        f"{caller}: the backbone is a {type(backbone).__module__}.{type(backbone).__qualname__}; {hint}want one that "
        "load_backbone returns. It loads timm's and Hugging Face's models by their names"
    )


def _sizes(images: object) -> list[tuple[int, int]]:
    """Return each (H, W) that images have. Anything that is no image is left out: the backbone explains its error."""
    if isinstance(images, Tensor):  # under a tracer the sizes may be symbols, which no set takes
        return [(images.shape[-2], images.shape[-1])] if images.ndim > 2 and images.numel() else []
    each = images if isinstance(images, list | tuple) else []
    return sorted({(x.shape[-2], x.shape[-1]) for x in each if isinstance(x, Tensor) and x.ndim > 2 and x.numel()})


def _called(head: Head) -> str:
    return f"head {head.name!r}" if head.name else f"this {type(head).__name__}"


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
    so that batch norms keep their statistics and no path is dropped.

    Raises `ValueError` on anything but a backbone: of a whole model, freeze its `backbone`.
    """
    given: object = backbone
    if not isinstance(given, BackboneModule):
        kind = f"{type(given).__module__}.{type(given).__qualname__}"
        inner = getattr(given, "backbone", None)
        remedy = "freeze(model.backbone)" if isinstance(inner, BackboneModule) else "what load_backbone returns"
        raise ValueError(
            f"freeze was given a {kind}, which a later .train() would undo; want a backbone alone: {remedy}"
        )
    backbone.frozen = True
    vars(backbone).pop("resting", None)
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
        if not isinstance(name, str) or not name:
            raise ValueError(f"register_head: the name is {name!r}; want a string that is not empty")
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


@float32_default()
def create_head(name: str, spec: BackboneSpec, **config: Any) -> Any:
    """A head by its name, sized for a backbone, with its options.

    Raises `ValueError` on an unknown name, an option that the head does not have, one that is missing, and one whose
    value cannot be.
    """
    head_class = _find(name)
    if not isinstance(spec, BackboneSpec):
        raise ValueError(f"create_head({name!r}): spec is a {type(spec).__name__}; want a BackboneSpec: backbone.spec")
    options = dict(list(inspect.signature(head_class).parameters.items())[1:])  # but for the spec
    free = any(option.kind is option.VAR_KEYWORD for option in options.values())
    options = {
        key: option for key, option in options.items() if option.kind not in (option.VAR_KEYWORD, option.VAR_POSITIONAL)
    }
    stray = [f"has no option {key!r}" for key in config if key not in options and not free]
    lacking = [
        f"wants {key}" for key, option in options.items() if option.default is option.empty and key not in config
    ]
    hints = hints_of(head_class.__init__)
    if stray or lacking:
        known = ", ".join(signature_text(option, hints.get(key)) for key, option in options.items()) or "none"
        hints_at = "".join(did_you_mean(key, options) for key in config if key not in options) if not lacking else ""
        raise ValueError(f"head {name!r} {' and '.join(stray + lacking)}{hints_at}; its options are {known}")
    config = check(f"head {name!r}", hints, config)
    head = head_class(spec, **config)
    head.name, head.config = name, config
    return head


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _find(name: str) -> type[Head]:
    if not isinstance(name, str):
        raise ValueError(f"the name of a head is a {type(name).__name__}; want one of {', '.join(list_heads())}")
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if name in _registered:
        return _registered[name]
    installed = _installed()
    if name not in installed:
        hint = did_you_mean(name, list_heads()) or "."
        raise ValueError(f"unknown head {name!r}{hint} Want one of {', '.join(list_heads())}")
    found = installed[name].load()
    if not (isinstance(found, type) and issubclass(found, Head)):
        raise ValueError(f"head {name!r} of {installed[name].value} is no subclass of heads.Head")
    return found
