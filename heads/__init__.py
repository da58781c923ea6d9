"""Heads: what consumes the features of a backbone. Imported by nobody but the command line."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heads.adapters.detectron2 import as_detectron2
    from heads.adapters.torchvision import as_torchvision
    from heads.attentive import AimProbe, VJepaProbe
    from heads.attentive_probe import AttentiveProbe
    from heads.base import (
        Attached,
        DenseHead,
        Head,
        Needs,
        attach,
        create_head,
        freeze,
        list_heads,
        register_head,
    )
    from heads.cameras import CameraEncoder, CameraFeatures, CameraTokens
    from heads.classification import (
        ConcatHead,
        DistilledHead,
        MlpHead,
        checkpoint_head,
        classification_loss,
        imagenet_labels,
        lc_features,
    )
    from heads.depth import DepthMetrics, LinearDepth, depth_metrics, scale_invariant_loss
    from heads.detection import FeaturePyramid, SimpleFeaturePyramid, feature_pyramid
    from heads.dpt import DPT, DPTDepth
    from heads.eomt import EoMT
    from heads.head_files import load_head, save_head
    from heads.masks import Masks, set_loss
    from heads.measures import ClassReport, Report, accuracy_interval, report
    from heads.policy import KeypointEncoder, PolicyNeck, SpatialSoftmax
    from heads.probe_files import load_probe, save_probe
    from heads.probes import KnnProbe, LinearProbe
    from heads.projectors import OpenVLAProjector, SpaceToDepth, TokenProjector
    from heads.resamplers import MapPool, PerceiverResampler
    from heads.segmentation import LinearSegmenter, MultiLayerSegmenter, Segmenter, segmentation_loss
    from heads.splits import hold_out, join_groups
    from heads.upernet import UPerNet

# Loaded on first use, so that none pays for the libraries of another.
_LAZY = {
    "AimProbe": "attentive",
    "Attached": "base",
    "AttentiveProbe": "attentive_probe",
    "CameraEncoder": "cameras",
    "CameraFeatures": "cameras",
    "CameraTokens": "cameras",
    "ClassReport": "measures",
    "ConcatHead": "classification",
    "DPT": "dpt",
    "DPTDepth": "dpt",
    "DenseHead": "base",
    "DepthMetrics": "depth",
    "DistilledHead": "classification",
    "EoMT": "eomt",
    "FeaturePyramid": "detection",
    "Head": "base",
    "KeypointEncoder": "policy",
    "KnnProbe": "probes",
    "LinearDepth": "depth",
    "LinearProbe": "probes",
    "LinearSegmenter": "segmentation",
    "MapPool": "resamplers",
    "Masks": "masks",
    "MlpHead": "classification",
    "MultiLayerSegmenter": "segmentation",
    "Needs": "base",
    "OpenVLAProjector": "projectors",
    "PerceiverResampler": "resamplers",
    "PolicyNeck": "policy",
    "Report": "measures",
    "Segmenter": "segmentation",
    "SimpleFeaturePyramid": "detection",
    "SpaceToDepth": "projectors",
    "SpatialSoftmax": "policy",
    "TokenProjector": "projectors",
    "UPerNet": "upernet",
    "VJepaProbe": "attentive",
    "accuracy_interval": "measures",
    "as_detectron2": "adapters.detectron2",
    "as_torchvision": "adapters.torchvision",
    "attach": "base",
    "checkpoint_head": "classification",
    "classification_loss": "classification",
    "create_head": "base",
    "depth_metrics": "depth",
    "feature_pyramid": "detection",
    "freeze": "base",
    "hold_out": "splits",
    "imagenet_labels": "classification",
    "join_groups": "splits",
    "lc_features": "classification",
    "list_heads": "base",
    "load_head": "head_files",
    "load_probe": "probe_files",
    "register_head": "base",
    "report": "measures",
    "save_head": "head_files",
    "save_probe": "probe_files",
    "scale_invariant_loss": "depth",
    "segmentation_loss": "segmentation",
    "set_loss": "masks",
}

__all__ = [
    "DPT",
    "AimProbe",
    "Attached",
    "AttentiveProbe",
    "CameraEncoder",
    "CameraFeatures",
    "CameraTokens",
    "ClassReport",
    "ConcatHead",
    "DPTDepth",
    "DenseHead",
    "DepthMetrics",
    "DistilledHead",
    "EoMT",
    "FeaturePyramid",
    "Head",
    "KeypointEncoder",
    "KnnProbe",
    "LinearDepth",
    "LinearProbe",
    "LinearSegmenter",
    "MapPool",
    "Masks",
    "MlpHead",
    "MultiLayerSegmenter",
    "Needs",
    "OpenVLAProjector",
    "PerceiverResampler",
    "PolicyNeck",
    "Report",
    "Segmenter",
    "SimpleFeaturePyramid",
    "SpaceToDepth",
    "SpatialSoftmax",
    "TokenProjector",
    "UPerNet",
    "VJepaProbe",
    "accuracy_interval",
    "as_detectron2",
    "as_torchvision",
    "attach",
    "checkpoint_head",
    "classification_loss",
    "create_head",
    "depth_metrics",
    "feature_pyramid",
    "freeze",
    "hold_out",
    "imagenet_labels",
    "join_groups",
    "lc_features",
    "list_heads",
    "load_head",
    "load_probe",
    "register_head",
    "report",
    "save_head",
    "save_probe",
    "scale_invariant_loss",
    "segmentation_loss",
    "set_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"heads.{_LAZY[name]}"), name)
