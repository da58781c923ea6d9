"""What each architecture of timm does here: untrained, on the meta device, which computes shapes alone."""

import warnings

import timm
import torch

from benchmarks.coverage.rows import Row, runs
from vitbackbone.checkpoints.timm_names import describe_timm
from vitbackbone.contract import BackboneSpec, Features, device_of
from vitbackbone.networks import TimmBackbone
from vitbackbone.networks.timm import without_weights
from vitbackbone.networks.timm_sizes import Sizes

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
        _check(backbone, backbone.spec.image_size)
    except Exception as error:  # the page says what an architecture raises
        return Row(name, family, "refused", reason=_short(error))
    spec, sizes = backbone.spec, backbone.sizes
    known = {"cls": _tokens(spec), "pooled": spec.pooled_dim, "levels": f"{runs(spec.dims)}; {runs(spec.strides)}"}
    native = " x ".join(map(str, spec.image_size))
    if sizes is None:
        reason = "its weights depend on the number of patches"
        return Row(name, family, "native size only", sizes=native, reason=reason, **known)
    try:
        for size in others(spec.image_size, backbone.config.rebuild):
            _check(backbone, size)
    except Exception as error:
        return Row(name, family, "native size only", sizes=native, reason=_short(error), **known)
    return Row(name, family, "any size", sizes=_sizes(sizes), **known)


def others(native: Size, rebuilt: bool) -> list[Size]:
    """Return an odd size, and another square and a wide size. A network that is rebuilt has run such sizes already, to
    find those that it accepts."""
    side = max(native)
    odd = (side // 2 + 13, side // 3 + 7)
    return [odd] if rebuilt else [odd, (side + 64, side + 64), (side // 2, side + 32)]


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
