"""csv: tables for spreadsheets and R, with a column for each number."""

import csv
from pathlib import Path

from vitbackbone.store.formats.columns import about, spans
from vitbackbone.store.store import FeatureStore


def write(store: FeatureStore, folder: Path, progress: bool) -> None:
    """Write a table for each shard. Each number has the digits that identify it in its dtype."""
    for number, span in spans(store, progress):
        known, features = about(store, span), store.read("cls", span)
        with (folder / f"{number:05}.csv").open("w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened, lineterminator="\n")
            writer.writerow([*known.column_names, *(f"cls{i}" for i in range(features.shape[1]))])
            for row, numbers in zip(known.to_pylist(), features, strict=True):
                writer.writerow([*row.values(), *map(str, numbers)])
