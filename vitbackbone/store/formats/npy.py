"""npy: the layout of clip-retrieval (https://github.com/rom1504/clip-retrieval; its `clip inference` writes it)."""

from pathlib import Path

import numpy as np

from vitbackbone.store.formats.columns import about, spans
from vitbackbone.store.sources.parquet import write_parquet
from vitbackbone.store.store import FeatureStore


def write(store: FeatureStore, folder: Path, progress: bool) -> None:
    """Write an array and a table for each shard."""
    pieces = -(-len(store) // store.manifest["shard_size"])
    width = len(str(max(pieces - 1, 0)))  # so that names sort as the rows do
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir()
    for number, span in spans(store, progress):
        with (folder / "img_emb" / f"img_emb_{number:0{width}}.npy").open("wb") as opened:
            np.save(opened, store.read("cls", span), allow_pickle=False)
        known = about(store, span).rename_columns({"path": "image_path"})
        write_parquet(known, folder / "metadata" / f"metadata_{number:0{width}}.parquet")
