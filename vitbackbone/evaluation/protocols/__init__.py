"""The protocols, one file each."""

from importlib import import_module

from vitbackbone.evaluation.protocol import Protocol
from vitbackbone.files import did_you_mean

# The module of each protocol. It has a tuple `VARIANTS` of `Protocol` records, the default one first.
FILES = {
    "segmentation": "segmentation",
    "depth-nyu": "depth",
    "depth-kitti": "depth",
    "retrieval": "retrieval",
    "correspondence": "correspondence",
    "tracking": "tracking",
    "anomaly": "anomaly",
    "copies": "copies",
    "discovery": "discovery",
    "knn": "knn",
    "knn-few-shot": "knn",
    "linear": "linear",
    "attentive": "attentive",
    "logistic": "logistic",
    "fine-s": "logistic",
    "low-shot": "logistic",
    "imagenet-v2": "imagenet_variants",
    "imagenet-real": "imagenet_variants",
    "imagenet-a": "imagenet_variants",
    "imagenet-r": "imagenet_variants",
    "imagenet-sketch": "imagenet_variants",
    "imagenet-c": "imagenet_variants",
    "clustering": "clustering",
}


def variants(name: str) -> tuple[Protocol, ...]:
    """Return the variants of a protocol, the default one first. Raises `ValueError` on an unknown name."""
    if name not in FILES:
        raise ValueError(
            f"unknown protocol {name!r}{did_you_mean(name, FILES) or '.'} `vitbackbone evaluate list` shows them: "
            f"{', '.join(FILES)}"
        )
    module = import_module(f"{__name__}.{FILES[name]}")
    return tuple(each for each in module.VARIANTS if each.name == name)


def find_protocol(name: str, variant: str | None = None) -> Protocol:
    """Return a variant of a protocol, by default the first. Raises `ValueError` on an unknown name."""
    found = variants(name)
    if variant is None:
        return found[0]
    known = [each.variant for each in found]
    if variant not in known:
        raise ValueError(
            f"{name} has no variant {variant!r}{did_you_mean(variant, known) or '.'} Want {', '.join(known)}"
        )
    return found[known.index(variant)]
