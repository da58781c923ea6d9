"""Comparing a backbone with the library that its weights come from, on the same weights and photos.

Errors are max |a - b| / max |b| in float32, where b is upstream's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from vitbackbone.checkpoints import ZOO, find_entry
from vitbackbone.contract import BackboneModule, Features, evaluating
from vitbackbone.images import Resolution, stack_images
from vitbackbone.inspection.upstream_transformers import TransformersUpstream
from vitbackbone.inspection.upstreams import TimmUpstream, Upstream

Place = str | PathLike[str]
EQUAL = 1e-5  # the promise of this package
ROUNDING = 1e-4  # what float32 may add up to in the deepest networks


@dataclass(frozen=True)
class Check:
    """The differences between a backbone and its upstream.

    `errors`: the error of each part of the features that both have. `left_out`: why another part is not compared.
    """

    name: str
    upstream: str  # the library with its version
    weights: str  # where the weights come from
    image_size: tuple[int, int]  # (H, W) of the photos
    photos: int
    errors: dict[str, float]
    left_out: dict[str, str]

    @property
    def largest(self) -> float:
        """The largest error of any part."""
        return max(self.errors.values())

    @property
    def equal(self) -> bool:
        """Whether no part differs by more than rounding."""
        return self.largest <= ROUNDING  # False for NaN

    @property
    def verdict(self) -> str:
        """The verdict on the errors, as a sentence."""
        if self.largest <= EQUAL:
            return f"equal: no part differs by more than {EQUAL:.0e}"
        if self.equal:
            return f"equal but for rounding: no part differs by more than {ROUNDING:.0e}"
        worst = [part for part, error in self.errors.items() if not error <= ROUNDING]
        return f"different: {', '.join(worst)}; please report this table"


def check(
    name: Place, weights: Place | None = None, *, random: bool = False, resolution: Resolution | None = None
) -> Check:
    """Compare a backbone with its upstream, timm or transformers, on two sample photos.

    `weights`: a file in the format of `name`; None takes the published weights, from the Hub's cache or the Hub.
    `random`: compare with the same random weights instead, every parameter among them. This needs no network.
    `resolution`: input size in pixels, a side or (H, W); by default the checkpoint's own.

    Raises `ValueError` if the backbone has no upstream that is installed here, and the errors of `load_backbone`.
    """
    if random and weights is not None:
        raise ValueError("random weights and a weights file were given; want one of them")
    upstream = upstream_of(str(name))
    with torch.inference_mode(False), TemporaryDirectory() as folder:
        if random:
            model = randomise(upstream.build(None))
            ours = upstream.load(upstream.save(model, Path(folder)))
        else:
            model, ours = upstream.build(weights, published=weights is None), upstream.load(weights)
    where = "random weights" if random else "published weights" if weights is None else str(weights)
    images, photos = sample_images(ours, resolution)
    errors, left_out = compare(ours, upstream, model, images)
    size = (images.shape[-2], images.shape[-1])
    return Check(str(name), upstream.title, where, size, photos, errors, left_out)


def upstream_of(name: str) -> Upstream:
    """Return the upstream of a backbone. Raises `ValueError` if there is none here."""
    entry = find_entry(name)
    if entry.format.startswith("timm"):
        return TimmUpstream(name, entry)
    saved = name.startswith(("hf:", "hf-hub:")) or (Path(name).is_dir() and name not in ZOO)
    if saved and not entry.format.startswith("open_clip"):
        return TransformersUpstream(name)
    raise ValueError(
        f"{name} has no upstream to check against; want one of timm's names, timm:NAME, hf:OWNER/REPOSITORY or a "
        "directory of transformers or timm"
    )


def compare(
    ours: BackboneModule, upstream: Upstream, model: Any, images: Tensor
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the error of each part, and why a part is left out."""
    with evaluating(ours), evaluating(model):
        theirs = upstream.run(model, images, ours.spec)
        own: Features = ours(images)
        raw = ours.forward_layers(images, [ours.spec.depth - 1], norm=False)[0]
    patches = theirs.patches
    if theirs.raw is None and patches is not None:  # transformers' classes differ; a wrong norm shows in either
        raw = min(own, raw, key=lambda each: _error(each.patches, patches))
    elif not theirs.raw:
        raw = own
    parts = {"cls": raw.cls, "registers": raw.registers, "patches": raw.patches, "pooled": own.pooled}
    errors, left_out = {}, {}
    for part, found in parts.items():
        wanted = getattr(theirs, part)
        if found is None or not found.numel():
            left_out[part] = "the backbone has none"
        elif wanted is None:
            left_out[part] = theirs.missing.get(part, "upstream returns none")
        elif found.shape != wanted.shape:
            shapes = f"{tuple(found.shape[1:])} and {tuple(wanted.shape[1:])}"
            raise ValueError(f"{part} of {ours.spec.name} and of {upstream.title} have other shapes: {shapes}")
        else:
            errors[part] = _error(found, wanted)
    return errors, left_out


def _error(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def sample_images(backbone: BackboneModule, resolution: Resolution | None) -> tuple[Tensor, int]:
    """Return the photos that scikit-learn ships, as `backbone.preprocess` prepares them, and their number."""
    from sklearn.datasets import load_sample_images

    photos: Sequence[Any] = load_sample_images()["images"]
    return stack_images(backbone.preprocess, photos, resolution, False, None), len(photos)


def randomise(model: Any, seed: int = 0) -> Any:
    """Give every parameter and running statistic of a model random values, so that a key that is lost shows.

    Their size keeps the activations of a deep network finite.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(noise.abs() + 0.5)
                continue
            wide = tensor.ndim > 1 and "token" not in name and "pos" not in name
            scale = 1 / (tensor[0].numel() if wide else 4) ** 0.5
            tensor.copy_(noise * scale + (1.0 if tensor.ndim == 1 and name.endswith("weight") else 0.0))
    return model.eval()
