"""Several heads on one backbone, which share one forward.

    heads = {"classes": create_head("mlp", backbone.spec, num_classes=10), ...}
    attach(backbone, heads)(images)["classes"]

Axes: `B` batch, `H W` pixels.
"""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from heads import parallel
from heads.base import Head
from heads.options import Size, check
from heads.unread import remember, rest
from vitbackbone import Backbone, BackboneModule, BackboneSpec, Features, Geometry, any_size


class Attached(nn.Module):
    """A backbone and its heads. A call on images returns the output of each head by its name."""

    def __init__(self, backbone: BackboneModule, heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        wanted = {name: [(layer, head.needs.norm) for layer in head.layers] for name, head in heads.items()}
        self.wanted = wanted
        self.union = list(dict.fromkeys(each for of_one in wanted.values() for each in of_one))
        self.used = frozenset(each for head in heads.values() for each in head.used)
        self.pooled = any(head.needs.pooled for head in heads.values())

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy."""
        super().__setstate__(state)
        remember(self.backbone, self)

    def forward(self, images: Tensor | list[Tensor], targets: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the output of each head by its name, or its loss if `targets` are given.

        `images` are (B, 3, H, W), or a list of (3, H, W). `targets` has what each head's `loss` takes, by the head's
        name: labels for a segmenter. Under DDP and FSDP the loss must be computed here, in the forward that they wrap.
        It is then the loss over the batches of all processes, and the gradients equal those of one process that has
        all the images.

        Raises `ValueError` as `features` and `Head.loss` do, and unless `targets` has one entry for each head.
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
        """Return the loss of each head by its name. Call DDP's wrapper with `(images, targets)` instead."""
        return self(images, targets)

    def features(self, images: Tensor | list[Tensor]) -> dict[str, tuple[Features, ...]]:
        """Return the features that each head reads, by the head's name.

        The blocks run once, and none after the deepest layer that a head reads. `images` are (B, 3, H, W), or a list
        of (3, H, W).

        Raises `ValueError` if a head cannot divide the map of these images. Raises `RuntimeError` if DDP trains this
        module and its own forward is not running.
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
                f"targets is a {type(targets).__name__}; want a dict with the targets of each head: {names}"
            )
        if set(targets) != set(self.heads):
            given = ", ".join(map(str, targets)) or "no head"
            raise ValueError(f"targets are for {given}; want one for each head: {names}")


def attach(backbone: BackboneModule, heads: Mapping[str, Head], image_size: tuple[int, int] | None = None) -> Attached:
    """Join a backbone and its heads into one module that runs them in one forward.

    `image_size` is the (H, W) of the images to come, by default the backbone's own. A head that divides the map is
    checked against it here, and against the images at each call.

    From here on, backbone parameters that no head reads get no gradient. Examples are the blocks after the deepest
    layer that is read. If heads that read them are attached later, their gradients are turned on again.

    Raises `ValueError` if a head was made for another backbone, reads a CLS token or a norm that this backbone lacks,
    or cannot divide the map. The error names the head and what to change.
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
            f"attach: heads is a {type(heads).__name__}; want a dict of heads by names you choose, as in {{'it': head}}"
        )
    if not heads:
        raise ValueError("attach: no heads; want a dict of at least one head")
    size = check("attach", {"image_size": Size | None}, {"image_size": image_size})["image_size"]
    for name, head in heads.items():
        if not isinstance(head, Head):
            raise ValueError(f"head {name!r} is a {type(head).__name__}; want a heads.Head")
        if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name):
            raise ValueError(
                f"{name!r} cannot name a head, because torch uses the name in parameter names; want a string without "
                "dots that torch's ModuleDict does not use itself"
            )
        _check(name, head, backbone.spec, size or backbone.spec.image_size)
        head.bind(backbone)


def check_backbone(caller: str, backbone: object) -> None:
    """Raise `ValueError` unless `backbone` is a backbone. `caller` is the function that the error names."""
    if isinstance(backbone, nn.Module) and isinstance(backbone, Backbone):
        return
    hint = "that is the head's part; " if isinstance(backbone, Head) else ""
    raise ValueError(
        f"{caller}: the backbone is a {type(backbone).__module__}.{type(backbone).__qualname__}; {hint}want one that "
        "load_backbone returns. It loads timm's and Hugging Face's models by their names"
    )


def _sizes(images: object) -> list[tuple[int, int]]:
    """Return each (H, W) that images have. Leave out anything else, because the backbone explains its error."""
    if isinstance(images, Tensor):  # under a tracer the sizes may be symbols, which no set takes
        return [(images.shape[-2], images.shape[-1])] if images.ndim > 2 and images.numel() else []
    each = images if isinstance(images, list | tuple) else []
    return sorted({(x.shape[-2], x.shape[-1]) for x in each if isinstance(x, Tensor) and x.ndim > 2 and x.numel()})


def _check(name: str, head: Head, spec: BackboneSpec, image_size: tuple[int, int]) -> None:
    mine, theirs = _shape(head.spec), _shape(spec)
    if mine != theirs:
        different = ", ".join(f"{key} {mine[key]}, not {theirs[key]}" for key in mine if mine[key] != theirs[key])
        raise ValueError(
            f"head {name!r} was made for {head.spec.name}, which is not {spec.name}: {different}. "
            "Make it with create_head(name, backbone.spec, ...)"
        )
    if head.needs.prefix and not spec.has_cls:
        raise ValueError(f"head {name!r} reads the CLS token, and {spec.name} has none; use a head that reads patches")
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
                f"head {name!r} needs a map with sides divisible by {multiple}; images of {size[0]} x {size[1]} give "
                f"{h} x {w} patches. {remedy[0].upper()}{remedy[1:]}, for example {better}"
            )


def _shape(spec: BackboneSpec) -> dict[str, object]:
    """Return the fields of a spec that decide a head's shapes."""
    return {key: getattr(spec, key) for key in ("dims", "strides", "num_registers", "has_cls", "pooled_dim")}


B = TypeVar("B", bound=BackboneModule)


def freeze(backbone: B) -> B:
    """Turn off a backbone's gradients, put it into eval mode for good, and return it.

    A later `.train()` of a module that holds it leaves it in eval mode, so batch norms keep their statistics and no
    path is dropped.

    Raises `ValueError` on anything but a backbone. To freeze the backbone of a whole model, pass `model.backbone`.
    """
    given: object = backbone
    if not isinstance(given, BackboneModule):
        kind = f"{type(given).__module__}.{type(given).__qualname__}"
        inner = getattr(given, "backbone", None)
        remedy = "freeze(model.backbone)" if isinstance(inner, BackboneModule) else "what load_backbone returns"
        raise ValueError(
            f"freeze was given a {kind}, and a later .train() would unfreeze it; want only a backbone: {remedy}"
        )
    backbone.frozen = True
    vars(backbone).pop("resting", None)
    backbone.requires_grad_(False)
    backbone.eval()
    return backbone
