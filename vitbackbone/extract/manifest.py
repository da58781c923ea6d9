"""The manifest: everything that decides the features of a store. Two runs may share a store if theirs are equal."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vitbackbone.extract.layout import SCHEMA
from vitbackbone.features import Backbone, Runtime
from vitbackbone.preprocess import Decoding, Resolution

Manifest = dict[str, Any]


def make_manifest(
    backbone: Backbone,
    weights: str,
    *,
    tokens: Sequence[str],
    layers: Sequence[int],
    shard_size: int,
    resolution: Resolution | None,
    keep_aspect: bool,
    decoding: Decoding,
    dtype: str,
    runtime: Runtime,
    calibration: str | None,
) -> Manifest:
    """As it will be read back: JSON types only. `weights`: their `weights_sha256`. `calibration`: of the images
    that the runtime was calibrated on, if it was."""
    asked = {"resolution": resolution, "keep_aspect": keep_aspect, "decoding": decoding}
    manifest = {
        "schema": SCHEMA,
        "model": {"name": backbone.spec.name, "weights_sha256": weights, "spec": asdict(backbone.spec)},
        "runtime": asdict(runtime),
        "calibration": calibration,
        "preprocessing": asdict(backbone.preprocess) | asked,
        "dtype": dtype,
        "tokens": tokens,
        "layers": layers,
        "norm": backbone.spec.norms(layers),
        "shard_size": shard_size,
    }
    return parse(serialise(manifest))


def serialise(manifest: Manifest) -> bytes:
    return (json.dumps(manifest, indent=2) + "\n").encode()


def parse(data: bytes) -> Manifest:
    """Raises `ValueError` if `data` is not a manifest of this schema."""
    manifest = json.loads(data)
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise ValueError(f"its manifest is not of schema {SCHEMA}, the one that this version reads")
    return manifest


def fingerprint(manifest: Manifest) -> str:
    return hashlib.sha256(serialise(manifest)).hexdigest()


def differences(stored: object, asked: object, name: str = "") -> list[str]:
    """Each entry that is not the same, as "name: the store has x, asked is y"."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        keys = dict.fromkeys([*stored, *asked])
        return [
            line
            for key in keys
            for line in differences(stored.get(key), asked.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if stored == asked else [f"{name}: the store has {_short(stored)}, asked is {_short(asked)}"]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."
