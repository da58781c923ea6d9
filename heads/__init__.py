"""Heads: what consumes the features of a backbone. Imported by nobody but the command line."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heads.base import (
        Attached,
        DenseHead,
        Head,
        Needs,
        attach,
        create_head,
        freeze,
        list_heads,
        load_head,
        register_head,
        save_head,
    )
    from heads.classification import (
        ConcatHead,
        DistilledHead,
        MlpHead,
        checkpoint_head,
        imagenet_labels,
        lc_features,
    )
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
    from heads.segmentation import LinearSegmenter, MultiLayerSegmenter

# Loaded on first use, so that none pays for the libraries of another.
_LAZY = {
    "Attached": "base",
    "ClassReport": "probes",
    "ConcatHead": "classification",
    "DenseHead": "base",
    "DistilledHead": "classification",
    "Head": "base",
    "KnnProbe": "probes",
    "LinearProbe": "probes",
    "LinearSegmenter": "segmentation",
    "MlpHead": "classification",
    "MultiLayerSegmenter": "segmentation",
    "Needs": "base",
    "Report": "probes",
    "accuracy_interval": "probes",
    "attach": "base",
    "checkpoint_head": "classification",
    "create_head": "base",
    "freeze": "base",
    "hold_out": "probes",
    "imagenet_labels": "classification",
    "lc_features": "classification",
    "list_heads": "base",
    "load_head": "base",
    "load_probe": "probes",
    "register_head": "base",
    "report": "probes",
    "save_head": "base",
    "save_probe": "probes",
}

__all__ = [
    "Attached",
    "ClassReport",
    "ConcatHead",
    "DenseHead",
    "DistilledHead",
    "Head",
    "KnnProbe",
    "LinearProbe",
    "LinearSegmenter",
    "MlpHead",
    "MultiLayerSegmenter",
    "Needs",
    "Report",
    "accuracy_interval",
    "attach",
    "checkpoint_head",
    "create_head",
    "freeze",
    "hold_out",
    "imagenet_labels",
    "lc_features",
    "list_heads",
    "load_head",
    "load_probe",
    "register_head",
    "report",
    "save_head",
    "save_probe",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"heads.{_LAZY[name]}"), name)
