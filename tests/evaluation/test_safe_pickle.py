"""Pickles of datasets: numbers, strings and arrays are read, and nothing runs."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.classified import FAST
from tests.helpers import tiny_vit
from vitbackbone import evaluate
from vitbackbone.evaluation import (
    find_layout,
    read_pickle,
)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_numbers_strings_and_arrays_are_read(protocol, tmp_path) -> None:
    value = {
        "data": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "names": ["a", b"b", ("c", 1, 2.5, None, True)],
        "number": np.float32(3),
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    read = read_pickle(tmp_path / "a.pkl")
    assert read["names"] == value["names"]
    assert read["number"] == 3
    for name in ("data", "turned", "big"):
        assert np.array_equal(read[name], value[name])
        assert read[name].dtype == value[name].dtype


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


@pytest.mark.parametrize(
    "value",
    [Evil(), os.system, np.array([{}], dtype=object), range(3), np.dtype("f4"), np.zeros(2, "i4,f4")],
    ids=["call", "function", "object array", "range", "dtype", "record"],
)
def test_other_pickles_are_refused(value, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match=r"a.pkl is refused: .*Only pickles of numbers"):
        read_pickle("a.pkl")
    Path("b.pkl").write_bytes(pickle.dumps([1, 2, 3])[:-2])
    with pytest.raises(ValueError, match="refused"):
        read_pickle("b.pkl")
    assert not Path("owned").exists()


def test_cifar_is_read_as_distributed(tmp_path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random, first = np.random.default_rng(0), np.empty(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {"data": random.integers(0, 255, (2, 3072), dtype=np.uint8), "labels": [0, 1]}
        (folder / name).write_bytes(pickle.dumps(batch))
        first = batch["data"][0] if name == "data_batch_1" else first
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog"]}))
    data = find_layout("cifar10").read(tmp_path)
    assert (len(data.train), len(data.test), data.train.classes) == (10, 2, ["cat", "dog"])
    assert np.array_equal(data.train.pixels[0], first.reshape(3, 32, 32).transpose(1, 2, 0))
    result = evaluate("knn", tiny_vit(), {"cifar10": tmp_path}, settings=FAST, progress=False)["knn"]
    assert result.scores[0].n == 2
