"""Heads: what consumes the features of a backbone. Imported by nobody but the command line."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heads.classification import ConcatHead, DistilledHead, MlpHead, checkpoint_head, imagenet_labels
    from heads.probes import (
        ClassReport,
        KnnProbe,
        LinearProbe,
        Report,
        accuracy_interval,
        hold_out,
        load_probe,
        report,
        save_probe,
    )

__all__ = [
    "ClassReport",
    "ConcatHead",
    "DistilledHead",
    "KnnProbe",
    "LinearProbe",
    "MlpHead",
    "Report",
    "accuracy_interval",
    "checkpoint_head",
    "hold_out",
    "imagenet_labels",
    "load_probe",
    "report",
    "save_probe",
]

_CLASSIFICATION = {"ConcatHead", "DistilledHead", "MlpHead", "checkpoint_head", "imagenet_labels"}


def __getattr__(name: str) -> Any:
    """Loads a head on first use, so that none pays for the libraries of another."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("heads.classification" if name in _CLASSIFICATION else "heads.probes"), name)
