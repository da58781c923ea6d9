"""Try every architecture of timm, untrained and on the meta device, which computes only shapes."""

import warnings
from typing import Any

import timm
import torch

from benchmarks.coverage.rows import Row, runs
from vitbackbone.checkpoints.timm_names import describe_timm
from vitbackbone.contract import BackboneSpec, Features, device_of
from vitbackbone.networks import TimmBackbone
from vitbackbone.networks.timm.backbone import without_weights
from vitbackbone.networks.timm.sizes import Sizes

Size = tuple[int, int]


def names() -> list[str]:
    """Return the name of every architecture of timm."""
    return list(timm.list_models())


def examine(name: str) -> Row:
    """Load an architecture without weights and run it at its native size, another square, a wide and an odd size."""
    family = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        backbone = _load(name)
        sizes = backbone.sizes
        native, *others = sizes_to_try(backbone)
        _check(backbone, native)
    except Exception as error:  # the page says what an architecture raises
        return Row(name, family, "refused", reason=_short(error))
    spec = backbone.spec
    known: dict[str, Any] = {"cls": _tokens(spec), "pooled": spec.pooled_dim}
    known["levels"] = f"{runs(spec.dims)}; {runs(spec.strides)}"
    own = " x ".join(map(str, spec.image_size))
    if sizes is None:
        reason = "its weights depend on the number of patches"
        return Row(name, family, "native size only", sizes=own, reason=reason, **known)
    try:
        for size in others:
            _check(backbone, size)
    except Exception as error:
        return Row(name, family, "native size only", sizes=own, reason=_short(error), **known)
    return Row(name, family, "any size", sizes=_sizes(sizes), **known)


def sizes_to_try(backbone: TimmBackbone) -> list[Size]:
    """Return the native size, an odd size, another square and a wide size.

    A network that is built again for each size has run the last two already, to find the sizes that it accepts. One
    that cannot run on the meta device computes in full, so it runs small images.
    """
    height, width = backbone.spec.image_size
    side = max(height, width)
    if device_of(backbone).type != "meta" and backbone.sizes is not None and not backbone.config.rebuild:
        height = width = side = 2 * backbone.sizes.multiple * -(-64 // backbone.sizes.multiple)
    odd = (side // 2 + 13, side // 3 + 7)
    if backbone.config.rebuild:
        return [(height, width), odd]
    return [(height, width), odd, (side + 64, side + 64), (side // 2, side + 32)]


def _load(name: str) -> TimmBackbone:
    entry = describe_timm(name)
    model = without_weights(entry.config)
    backbone = TimmBackbone(entry.config, entry.preprocess, name, model)  # on the CPU if it cannot run on meta tensors
    return backbone.eval()


def _check(backbone: TimmBackbone, size: Size) -> None:
    """Run images of a size. Raises an error if a map or the vector has another shape than the `spec` promises."""
    spec = backbone.spec
    with torch.inference_mode():
        features: Features = backbone(torch.zeros(1, backbone.channels[0], *size, device=device_of(backbone)))
    h, w = (-(-side // spec.stride) for side in size)
    if features.patches.shape != (1, spec.dim, h, w):
        raise ValueError(f"images of {size[0]} x {size[1]} give a map of {tuple(features.patches.shape)}")
    if features.pooled.shape != (1, spec.pooled_dim) or (features.cls is not None) != spec.has_cls:
        raise ValueError(f"images of {size[0]} x {size[1]} give other vectors than the spec says")


def _tokens(spec: BackboneSpec) -> str:
    registers = f"{spec.num_registers} register" + ("s" if spec.num_registers > 1 else "")
    return " + ".join(["CLS"] * spec.has_cls + [registers] * (spec.num_registers > 0))


def _sizes(sizes: Sizes) -> str:
    shape = "squares of " if sizes.square else ""
    return shape + ("all" if sizes.multiple == 1 else f"multiples of {sizes.multiple}")


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()).replace("|", "/") or type(error).__name__
    return text.rstrip(".")[:200]
