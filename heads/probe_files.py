"""Fitted probes on disk: safetensors and JSON, never pickle."""

from os import PathLike
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from heads.attentive_probe import AttentiveProbe
from heads.blocks import Array
from heads.probe_base import Probe
from heads.probes import KnnProbe, LinearProbe
from heads.records import check_unedited, read_record, write_record

KINDS: dict[str, type[Probe]] = {"linear": LinearProbe, "knn": KnnProbe, "attentive": AttentiveProbe}


def save_probe(probe: BaseEstimator, folder: str | PathLike[str], *, about: dict[str, Any]) -> None:
    """Writes a fitted probe to `folder`, made if missing: `probe.safetensors` and `probe.json`. A probe there is
    replaced.

    `about`: what the probe was fitted on, anything that JSON holds: the backbone, its settings, the class names.
    Raises `ValueError` on another estimator than a fitted probe, and on labels other than strings, integers and
    booleans; `ValueError` or `TypeError` on what JSON does not hold. Nothing is written then.
    """
    kind = next((kind for kind, cls in KINDS.items() if isinstance(probe, cls)), None)
    if kind is None:
        given = type(probe).__name__
        raise ValueError(f"save_probe was given a {given}; want a LinearProbe, a KnnProbe or an AttentiveProbe")
    check_is_fitted(probe)
    names = getattr(probe, "feature_names_in_", None)
    record = {
        "kind": kind,
        "params": probe.get_params(),
        "classes": probe.classes_.tolist(),
        "classes_dtype": _label_dtype(probe.classes_),
        "feature_names": None if names is None else list(names),
        "about": about,
    }
    write_record(folder, "probe", safetensors.save(probe._to_tensors()), record, default=_number)


def load_probe(folder: str | PathLike[str]) -> tuple[Probe, dict[str, Any]]:
    """The probe that `save_probe` wrote, predicting the same to the last bit, and its `about`.

    Raises `OSError` if the files cannot be read, `ValueError` if they are not what `save_probe` wrote.
    """
    try:
        record, data = read_record(folder, "probe")
        if record["kind"] not in KINDS:
            raise ValueError(f"kind {record['kind']!r}; want one of {', '.join(KINDS)}")
        probe = KINDS[record["kind"]](**record["params"])
        probe.classes_ = np.array(record["classes"], dtype=record["classes_dtype"])
        probe._from_tensors(safetensors.load(data))
        if record["feature_names"] is not None:
            probe.feature_names_in_ = np.array(record["feature_names"], dtype=object)
        check_unedited(record, "probe")
        return probe, record["about"]
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no probe as save_probe writes it: {error!r}") from error


def _label_dtype(classes: Array) -> str:
    """The dtype by which `classes` come back from JSON. Raises `ValueError` where JSON would change them."""
    if classes.dtype.kind == "U":
        return "str"
    if classes.dtype.kind in "biu" or all(isinstance(label, str) for label in classes):
        return classes.dtype.name
    raise ValueError(f"labels are {classes.dtype}; a saved probe needs strings, integers or booleans")


def _number(value: object) -> Any:
    """numpy's numbers, which a grid search sets as parameters, as JSON's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is a {type(value).__name__}, which JSON does not hold")
