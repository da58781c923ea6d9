"""Heads: what consumes the features of a backbone. Imported by nobody but the command line."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heads.classification import DistilledHead, MlpHead, checkpoint_head
    from heads.probes import KnnProbe, LinearProbe, Report, accuracy_interval, load_probe, report, save_probe

__all__ = [
    "DistilledHead",
    "KnnProbe",
    "LinearProbe",
    "MlpHead",
    "Report",
    "accuracy_interval",
    "checkpoint_head",
    "load_probe",
    "report",
    "save_probe",
]

# Loaded on first use, so that no head pays for the libraries of another.
_LAZY = {
    "DistilledHead": "heads.classification",
    "KnnProbe": "heads.probes",
    "LinearProbe": "heads.probes",
    "MlpHead": "heads.classification",
    "Report": "heads.probes",
    "accuracy_interval": "heads.probes",
    "checkpoint_head": "heads.classification",
    "load_probe": "heads.probes",
    "report": "heads.probes",
    "save_probe": "heads.probes",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
