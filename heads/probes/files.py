"""Fitted probes on disk: safetensors and JSON, never pickle."""

from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from heads.probes.attentive import AttentiveProbe
from heads.probes.base import Probe
from heads.probes.knn import KnnProbe
from heads.probes.linear import LinearProbe
from heads.probes.rows import Array
from heads.records import check_unedited, read_record, write_record

KINDS: dict[str, type[Probe]] = {"linear": LinearProbe, "knn": KnnProbe, "attentive": AttentiveProbe}

# The fields that probe.json adds to those of every record: a check of each value, and its description in errors.
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "kind": (lambda value: isinstance(value, str) and value in KINDS, f"one of {', '.join(KINDS)}"),
    "params": (lambda value: isinstance(value, dict), "an object"),
    "classes": (lambda value: isinstance(value, list) and len(value) > 0, "a list of labels"),
    "classes_dtype": (lambda value: isinstance(value, str) and _is_label_dtype(value), "a dtype of labels"),
    "feature_names": (lambda value: value is None or _are_texts(value), "null or a list of strings"),
    "about": (lambda value: isinstance(value, dict), "an object"),
}


def save_probe(probe: BaseEstimator, folder: str | PathLike[str], *, about: dict[str, Any]) -> None:
    """Write a fitted probe to `folder`, made if missing, as `probe.safetensors` and `probe.json`.

    A probe in the folder is replaced. `about` describes what the probe was fitted on, in values that fit into JSON: the
    backbone, its settings, the class names.

    Raises `ValueError` unless `probe` is a fitted probe whose labels are strings, integers or booleans. Raises
    `ValueError` or `TypeError` on values that do not fit into JSON. Nothing is written then.
    """
    kind = next((kind for kind, cls in KINDS.items() if isinstance(probe, cls)), None)
    if kind is None:
        given = type(probe).__name__
        raise ValueError(f"save_probe was given a {given}; want a LinearProbe, a KnnProbe or an AttentiveProbe")
    check_is_fitted(probe)
    if not isinstance(about, dict):
        raise ValueError(f"about is a {type(about).__name__}; want a dict that describes what the probe was fitted on")
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
    """Load the probe that `save_probe` wrote, and its `about`. It predicts the same to the last bit.

    Raises `OSError` if the files cannot be read, and `ValueError` if `save_probe` did not write them or if they were
    edited later.
    """
    try:
        record, data = read_record(folder, "probe")
        probe = _probe_of(record)
        _fill(probe, record, data)
        check_unedited(record, "probe")
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        text = str(error) if "probe." in str(error) else f"probe.json: {error!r}"
        raise ValueError(f"{folder} holds no probe that save_probe wrote: {text}") from error
    return probe, record["about"]


def _probe_of(record: dict[str, Any]) -> Probe:
    """Make an unfitted probe with the parameters and classes of a record. Its `ValueError` names file and key."""
    for key, (accepts, wanted) in FIELDS.items():
        if key not in record:
            raise ValueError(f"probe.json has no {key!r}")
        if not accepts(record[key]):
            raise ValueError(f"probe.json: {key} {_short(record[key])}; want {wanted}")
    cls, params = KINDS[record["kind"]], record["params"]
    accepted = cls().get_params()
    if params.keys() != accepted.keys():
        raise ValueError(f"probe.json: params has {', '.join(params)}; {cls.__name__} has {', '.join(accepted)}")
    probe = cls(**params)
    try:
        probe._check_parameters()
    except ValueError as error:
        raise ValueError(f"probe.json: params: {error}") from error
    probe.classes_ = _classes(record["classes"], record["classes_dtype"])
    return probe


def _fill(probe: Probe, record: dict[str, Any], data: bytes) -> None:
    """Put the fitted tensors into a probe. Its `ValueError` names file and key."""
    try:
        probe._from_tensors(safetensors.load(data))
    except KeyError as error:
        raise ValueError(f"probe.safetensors has no tensor {error}") from error
    except (ValueError, TypeError, SafetensorError) as error:
        raise ValueError(f"probe.safetensors: {error}") from error
    names = record["feature_names"]
    if names is not None:
        if len(names) != probe.n_features_in_:
            raise ValueError(f"probe.json: feature_names has {len(names)} names for {probe.n_features_in_} features")
        probe.feature_names_in_ = np.array(names, dtype=object)


def _classes(labels: list[Any], dtype: str) -> Array:
    kinds = bool if dtype == "bool" else str if dtype in ("str", "object") else int
    if any(type(label) is not kinds for label in labels):
        raise ValueError(
            f"probe.json: classes {_short(labels)}; want a list of {kinds.__name__}, as classes_dtype says"
        )
    try:
        classes = np.array(labels, dtype=dtype)
    except OverflowError as error:
        raise ValueError(f"probe.json: classes {_short(labels)} do not fit into {dtype}") from error
    if not np.array_equal(np.unique(classes), classes):
        raise ValueError(f"probe.json: classes {_short(labels)}; want each once, sorted")
    return classes


def _label_dtype(classes: Array) -> str:
    """Return the dtype that restores `classes` from JSON. Raises `ValueError` if JSON would change them."""
    if classes.dtype.kind == "U":
        return "str"
    if classes.dtype.kind in "biu" or all(isinstance(label, str) for label in classes):
        return classes.dtype.name
    raise ValueError(f"labels are {classes.dtype}; a saved probe needs strings, integers or booleans")


def _is_label_dtype(name: str) -> bool:
    return name in ("str", "object", "bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def _number(value: object) -> Any:
    """Convert NumPy's numbers, which a grid search sets as parameters, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is a {type(value).__name__}, which JSON does not hold")
