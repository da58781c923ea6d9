"""webdataset: plain .tar files with a few small files for each image, for streaming into training."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from vitbackbone.store.formats.columns import about, spans
from vitbackbone.store.store import FeatureStore


def write(store: FeatureStore, folder: Path, progress: bool) -> None:
    """Write a .tar for each shard. The keys are the numbers of the images."""
    kinds = store.manifest["tokens"]
    width = max(9, len(str(len(store))))
    for number, span in spans(store, progress):
        tokens = {kind: store.read(kind, span) for kind in kinds if kind != "patches"}
        with tarfile.open(folder / f"{number:05}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for i, row in enumerate(about(store, span).to_pylist()):
                key = f"{span.start + i:0{width}}"
                _add(tar, f"{key}.json", json.dumps(row).encode())
                for kind in kinds:
                    values = store.patches(span.start + i).transpose(1, 2, 0) if kind == "patches" else tokens[kind][i]
                    _add(tar, f"{key}.npy" if kind == "cls" else f"{key}.{kind}.npy", _npy(values))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # without times and owners, so that equal stores give equal bytes
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()
