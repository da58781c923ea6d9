"""parquet: tables for pandas, polars, DuckDB and Hugging Face's datasets."""

from pathlib import Path

from vitbackbone.store.formats.columns import spans, table
from vitbackbone.store.sources.parquet import write_parquet
from vitbackbone.store.store import FeatureStore


def write(store: FeatureStore, folder: Path, progress: bool) -> None:
    """Write the table, a file for each shard."""
    for number, span in spans(store, progress):
        write_parquet(table(store, span), folder / f"{number:05}.parquet")
