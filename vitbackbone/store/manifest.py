"""The manifest: everything that decides the features of a store. Runs share a store if their manifests are equal."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vitbackbone.contract import Backbone, BackboneSpec, Runtime
from vitbackbone.files import Record, parse_json
from vitbackbone.images import Decoding, Resolution
from vitbackbone.store.layout import SCHEMA
from vitbackbone.store.records import Name

Manifest = dict[str, Any]


class _Model(Record):
    name: str
    weights_sha256: str
    spec: BackboneSpec


class _Preprocessing(Record):
    """The arguments of the run. The fields of the backbone's own `Preprocess` are next to them."""

    resolution: int | tuple[int, int] | None
    keep_aspect: bool
    decoding: Decoding
    decoder: Literal["pillow", "nvjpeg"]  # whose pixels they are; the CPU's decoders serve where they equal Pillow's


class _Fields(Record):
    """The fields of a manifest that are read back."""

    model: _Model
    runtime: Runtime
    calibration: Name | None
    preprocessing: _Preprocessing
    dtype: Literal["float32", "float16", "bfloat16"]
    tokens: Annotated[tuple[Literal["cls", "registers", "patches"], ...], Field(min_length=1)]
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    shard_size: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _check_layers(self) -> "_Fields":
        if max(self.layers) >= self.model.spec.depth:
            raise ValueError(f"has layers={list(self.layers)}; its model has {self.model.spec.depth} layers")
        return self


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
    """Make a manifest as `parse` returns it, of JSON types only.

    `weights`: the weights' `weights_sha256`. `calibration`: object with the images that the runtime is made with.
    """
    decoder = "nvjpeg" if decoding == "gpu" else "pillow"
    asked = {"resolution": resolution, "keep_aspect": keep_aspect, "decoding": decoding, "decoder": decoder}
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
    return parse(json.dumps(manifest).encode())


def parse(data: bytes) -> Manifest:
    """Parse a manifest. Raises `ValueError` that names each wrong key."""
    parse_json(data, _Fields, "its manifest")
    manifest: Manifest = json.loads(data)
    if manifest.get("schema") != SCHEMA:
        raise ValueError(f"its manifest does not have schema {SCHEMA}, which this version reads")
    return manifest


def differences(stored: object, asked: object, name: str = "") -> list[str]:
    """Return a line for each entry that differs: "name: the store has x, asked is y"."""
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
