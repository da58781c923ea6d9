"""The contract of every backbone: its input, its output and its description of itself."""

from vitbackbone.contract.align import align, multiply_axes
from vitbackbone.contract.backbone import Asked, Backbone, BackboneModule, check_images, one_by_one
from vitbackbone.contract.dtypes import float32_default
from vitbackbone.contract.features import (
    Attention,
    Features,
    Kept,
    Pooled,
    Prefix,
    pool_cls,
    pool_cls_or_mean,
    pool_mean,
    stack,
    stack_maps,
)
from vitbackbone.contract.fingerprint import fingerprint, weights_sha256
from vitbackbone.contract.geometry import Geometry, Images
from vitbackbone.contract.inference import check_device, device_of, evaluating
from vitbackbone.contract.pytrees import register, tree_leaves
from vitbackbone.contract.repeated import Repeated, one_value
from vitbackbone.contract.spec import BackboneSpec, Engine, Fidelity, Precision, Runtime, Wanted, describe_settings
from vitbackbone.contract.tracing import any_size, assume, copied, numbers

register()

__all__ = [
    "Asked",
    "Attention",
    "Backbone",
    "BackboneModule",
    "BackboneSpec",
    "Engine",
    "Features",
    "Fidelity",
    "Geometry",
    "Images",
    "Kept",
    "Pooled",
    "Precision",
    "Prefix",
    "Repeated",
    "Runtime",
    "Wanted",
    "align",
    "any_size",
    "assume",
    "check_device",
    "check_images",
    "copied",
    "describe_settings",
    "device_of",
    "evaluating",
    "fingerprint",
    "float32_default",
    "multiply_axes",
    "numbers",
    "one_by_one",
    "one_value",
    "pool_cls",
    "pool_cls_or_mean",
    "pool_mean",
    "stack",
    "stack_maps",
    "tree_leaves",
    "weights_sha256",
]
