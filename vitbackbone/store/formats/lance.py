"""lance: a table with fast access to single rows, for LanceDB and vector search."""

from collections.abc import Iterator
from pathlib import Path

import lance
import pyarrow as pa

from vitbackbone.files import is_utf8
from vitbackbone.store.formats.columns import spans, table
from vitbackbone.store.store import FeatureStore


def write(store: FeatureStore, folder: Path, progress: bool) -> None:
    """Write one dataset. Raises `ValueError` if the path of the folder is not UTF-8."""
    if not is_utf8(folder):
        raise ValueError("Lance writes only to paths that are UTF-8; give another output folder")
    schema = table(store, range(0), flat=True).schema

    def batches() -> Iterator[pa.RecordBatch]:
        for _, span in spans(store, progress):
            yield from table(store, span, flat=True).cast(schema).to_batches()

    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), folder / "features.lance", schema)
