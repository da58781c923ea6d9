"""The examples of `embed_batch` run in each engine, and write what `embed_batch` returns."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.helpers import save_photo
from vitbackbone import embed_batch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(("script", "library"), [("ray", "ray"), ("daft", "daft"), ("spark", "pyspark")])
def test_an_engine_embeds_a_folder(script: str, library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    if library == "pyspark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    for i in range(5):
        save_photo(tmp_path / "photos" / f"{i}.png", 30 + i, seed=i)
    (tmp_path / "photos" / "bad.png").write_bytes(b"?")
    command = [sys.executable, EXAMPLES / f"embed_with_{script}.py", tmp_path / "photos", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [row for file in (tmp_path / "out").rglob("*.parquet") for row in pq.ParquetFile(file).read().to_pylist()]
    found = {Path(row["path"]).name: np.array(row["features"], np.float32) for row in rows}
    assert set(found) == {"bad.png", *(f"{i}.png" for i in range(5))}
    assert np.isnan(found.pop("bad.png")).all()
    for name, features in found.items():
        expected = embed_batch([(tmp_path / "photos" / name).read_bytes()])[0]
        np.testing.assert_allclose(features.reshape(-1), expected, atol=1e-5)
