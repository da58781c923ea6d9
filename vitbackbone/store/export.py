"""Export a store to formats of other programs.

    npy        img_emb/img_emb_0.npy, metadata/metadata_0.parquet, ...: the layout of clip-retrieval
               (https://github.com/rom1504/clip-retrieval; its `clip inference` writes the same files)
    parquet    00000.parquet, ...: a table for pandas, polars, DuckDB
    csv        00000.csv, ...: a table for spreadsheets and R, with a column for each number

Each file holds as many images as a shard. Failed images are left out.
"""

import csv
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from vitbackbone.files import progress_bar, publish
from vitbackbone.store.parquet import write_parquet
from vitbackbone.store.publication import check_folder
from vitbackbone.store.store import FeatureStore

Format = Literal["npy", "parquet", "csv"]


def export(store: FeatureStore, format: Format, out: str | PathLike[str], progress: bool = False) -> list[Path]:
    """Write a store into the folder `out`, and return the files. Existing files of these names are replaced.

    `npy`: arrays (n, D) of CLS tokens, and tables with the path, label, class name, size and sha256 of each image.
    `parquet`: the same columns, and the tokens that are stored: `cls` is a list of D numbers, `registers` R such lists,
    `patches` h*w such lists, with `grid` (h, w).
    `csv`: the same columns, and `cls0`, `cls1`, ... for the CLS tokens. float32 numbers are read back exactly.
    Raises `ValueError` for another format, and for `npy` and `csv` if the store has no CLS tokens.
    """
    if format not in get_args(Format):
        raise ValueError(f"format {format!r}; want one of {', '.join(get_args(Format))}")
    kinds = store.manifest["tokens"]
    if format != "parquet" and "cls" not in kinds:
        raise ValueError(f"{store.directory} has no CLS tokens, and {format} holds only these; export it as parquet")
    folder = Path(out)
    check_folder(folder)
    size = store.manifest["shard_size"]
    spans = [range(start, min(start + size, len(store))) for start in range(0, len(store), size)]
    width = len(str(len(spans) - 1))  # so that names sort as the rows do
    files: list[Path] = []
    for number, span in enumerate(progress_bar(spans, "exporting", progress, unit="shard")):
        about = _about(store, span)
        if format == "npy":
            array = folder / "img_emb" / f"img_emb_{number:0{width}}.npy"
            table = folder / "metadata" / f"metadata_{number:0{width}}.parquet"
            _save_array(array, store.read("cls", span))
            _save_table(table, about.rename_columns({"path": "image_path"}))
            files += [array, table]
        elif format == "csv":
            file = folder / f"{number:05}.csv"
            _save_csv(file, about, store.read("cls", span))
            files.append(file)
        else:
            file = folder / f"{number:05}.parquet"
            for kind in kinds:
                for name, column in _columns(store, kind, span).items():
                    about = about.append_column(name, column)
            _save_table(file, about)
            files.append(file)
    return files


def _about(store: FeatureStore, span: range) -> pa.Table:
    rows = store.images.slice(span.start, len(span)).select(["path", "label", "width", "height", "sha256"])
    names = pa.array(store.class_names, pa.string()) if store.class_names else pa.nulls(0, pa.string())
    labels = rows["label"].to_pylist()
    classes = pa.array([names[label].as_py() if label >= 0 else None for label in labels], pa.string())
    return rows.add_column(2, "class", classes)


def _columns(store: FeatureStore, kind: str, span: range) -> dict[str, pa.Array]:
    if kind != "patches":
        return {kind: _lists(store.read(kind, span))}
    maps = [store.patches(i) for i in span]
    tokens = [_lists(one.reshape(len(one), -1).T) for one in maps]
    offsets = np.cumsum([0, *map(len, tokens)])
    value = pa.concat_arrays(tokens) if tokens else pa.array([], pa.list_(pa.float32()))
    grids = pa.array([list(one.shape[1:]) for one in maps], pa.list_(pa.int32(), 2))
    return {"patches": pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), value), "grid": grids}


def _lists(array: Float[np.ndarray, "..."]) -> Any:
    """Return (n, D) as n lists of D numbers, and (n, R, D) as n lists of R such lists."""
    lists = pa.array(np.ascontiguousarray(array).reshape(-1))
    for size in array.shape[:0:-1]:
        lists = pa.FixedSizeListArray.from_arrays(lists, size)
    return lists


def _save_array(file: Path, array: Float[np.ndarray, "n D"]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with publish(file) as temporary, temporary.open("wb") as opened:
        np.save(opened, array, allow_pickle=False)


def _save_table(file: Path, table: pa.Table) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with publish(file) as temporary:
        write_parquet(table, temporary)


def _save_csv(file: Path, about: pa.Table, features: Float[np.ndarray, "n D"]) -> None:
    """Write a CSV. Each number has the digits that identify it in its dtype."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with publish(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow([*about.column_names, *(f"cls{i}" for i in range(features.shape[1]))])
        for row, numbers in zip(about.to_pylist(), features, strict=True):
            writer.writerow([*row.values(), *map(str, numbers)])
