"""A saved probe comes back bit for bit. A file that was edited or damaged is refused by name."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from heads import AttentiveProbe, KnnProbe, LinearProbe, load_probe, save_probe
from tests.heads.samples import PROBES, clusters

LABELS = {
    "strings": np.array(["cat", "ダックス", "owl"]),
    "objects": np.array(["cat", "dog", "owl"], dtype=object),
    "integers": np.array([3, -2, 12]),
    "narrow": np.array([3, 1, 2], dtype=np.uint8),
}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("probe", PROBES, ids=repr)
def test_a_saved_probe_predicts_the_same_bits(tmp_path, probe, dtype, labels):
    X, y, test = (a.astype(dtype) if a.dtype.kind == "f" else a for a in clusters(90, 3))
    fitted = clone(probe).fit(X, LABELS[labels][y])
    about = {"backbone": "nano", "layer": -1, "names": ["a", "b"], "nested": {"x": None}}
    save_probe(fitted, tmp_path / "new" / "probe", about=about)
    assert sorted(p.name for p in (tmp_path / "new" / "probe").iterdir()) == ["probe.json", "probe.safetensors"]

    loaded, about_loaded = load_probe(tmp_path / "new" / "probe")
    assert about_loaded == about
    assert type(loaded) is type(fitted)
    assert loaded.get_params() == fitted.get_params()
    assert loaded.n_features_in_ == 12
    assert loaded.classes_.dtype.kind == fitted.classes_.dtype.kind
    np.testing.assert_array_equal(loaded.classes_, fitted.classes_)
    np.testing.assert_array_equal(loaded.predict_proba(test), fitted.predict_proba(test))
    np.testing.assert_array_equal(loaded.predict(test), fitted.predict(test))
    assert loaded.predict_proba(test).dtype == fitted.predict_proba(test).dtype
    if isinstance(fitted, LinearProbe):
        assert loaded.C_ == fitted.C_
        np.testing.assert_array_equal(loaded.decision_function(test), fitted.decision_function(test))


def test_two_classes_feature_names_and_searched_parameters_survive(tmp_path):
    X, y, test = clusters(60, 2)
    frame = pd.DataFrame(X, columns=[f"cls{i}" for i in range(12)])
    linear = LinearProbe().fit(frame, y.astype(bool))
    save_probe(linear, tmp_path, about={})
    loaded, _ = load_probe(tmp_path)
    np.testing.assert_array_equal(
        loaded.decision_function(frame * 2), linear.decision_function(frame * 2)
    )  # pandas' warning about names is an error here
    assert loaded.predict(frame).dtype == bool

    save_probe(KnnProbe().set_params(k=np.int64(3)).fit(X, y), tmp_path, about={})  # in place of the other
    loaded, _ = load_probe(tmp_path)
    assert loaded.k == 3
    np.testing.assert_array_equal(loaded.predict(test), KnnProbe(k=3).fit(X, y).predict(test))


def test_save_refuses_what_it_could_not_give_back(tmp_path):
    X, y, _ = clusters(30, 3)
    fitted = LinearProbe().fit(X, y)
    folder = tmp_path / "probe"
    for probe, about, match in [
        (make_pipeline(StandardScaler(), LinearProbe()).fit(X, y), {}, "given a Pipeline; want a LinearProbe"),
        (LinearProbe(), {}, "not fitted"),
        (LinearProbe().fit(X, y * 1.0), {}, "labels are float64"),
        (fitted, {"a": math.nan}, "JSON"),
    ]:
        with pytest.raises(ValueError, match=match):
            save_probe(probe, folder, about=about)
    with pytest.raises(TypeError, match="JSON does not hold"):
        save_probe(fitted, folder, about={"backbone": object()})
    assert not folder.exists()


def edit(record: Path, **fields: object) -> None:
    record.write_text(json.dumps({**json.loads(record.read_text()), **fields}))


FITTED = {
    "linear": lambda X, y: LinearProbe().fit(X, y),
    "knn": lambda X, y: KnnProbe().fit(X, y),
    "attentive": lambda X, y: AttentiveProbe("aim", epochs=1, progress=False).fit(X[:, None], y),
}


# Damages of probe.json, and the key that the error names beside the file
EDITS = {
    "kind": ("svm", ["x"], None, 3),
    "version": (2, "1", None, [1]),
    "classes": ([0, 1], [], [0, 1, "2"], [2, 1, 0], [0, 1, 1], "abc", None, [0, 1, 2.5], [0, 1, 10**30], {"a": 1}),
    "classes_dtype": ("float64", "O8", None, 7, "uint64[3]", "no dtype"),
    "feature_names": (["a"], "abc", [1] * 12, {}),
    "params": ({}, {"learning_rate": 1}, [], None, "x"),
    "about": ([], None, "x"),
    "record_sha256": (None, "0", 5),
    "sha256": ("0", None, 1),
}


@pytest.fixture(params=FITTED)
def saved(request, tmp_path):
    X, y, _ = clusters(30, 3)
    save_probe(FITTED[request.param](X.astype(np.float32), y), tmp_path, about={"backbone": "nano"})
    return tmp_path


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in EDITS.items() for value in values], ids=str)
def test_an_edited_record_is_refused_by_name(saved, key, value):
    edit(saved / "probe.json", **{key: value})
    with pytest.raises(ValueError, match=r"probe\.(json|safetensors)") as refused:
        load_probe(saved)
    assert str(saved) in str(refused.value)
    assert any(word in str(refused.value) for word in (key, "classes", "labels"))


@pytest.mark.parametrize("key", EDITS)
def test_a_record_without_a_key_is_refused_by_name(saved, key):
    record = json.loads((saved / "probe.json").read_text())
    del record[key]
    (saved / "probe.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"probe\.json.*{key}"):
        load_probe(saved)


@pytest.mark.parametrize("change", [{"about": {"backbone": "other"}}, {"params": "seed"}], ids=str)
def test_a_record_that_fits_but_was_edited_is_noticed(saved, change):
    record = json.loads((saved / "probe.json").read_text())
    if change == {"params": "seed"}:
        name, value = {"linear": ("scale", False), "knn": ("k", 3), "attentive": ("epochs", 7)}[record["kind"]]
        change = {"params": {**record["params"], name: value}}
    edit(saved / "probe.json", **change)
    with pytest.raises(ValueError, match=r"probe\.json was edited after"):
        load_probe(saved)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"x"', "[" * 100_000, "\udcff", "{}"], ids=lambda t: t[:9]
)
def test_a_malformed_record_is_refused_by_name(saved, text):
    (saved / "probe.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"probe\.json"):
        load_probe(saved)


def rewrite(folder: Path, **tensors: np.ndarray | None) -> None:
    """Put other tensors into a saved probe, with a digest that fits them."""
    file = folder / "probe.safetensors"
    changed = {**safetensors.numpy.load_file(file), **tensors}
    file.write_bytes(safetensors.numpy.save({name: value for name, value in changed.items() if value is not None}))
    edit(folder / "probe.json", sha256=hashlib.sha256(file.read_bytes()).hexdigest())


def test_other_tensors_are_refused_by_name(saved):
    original = safetensors.numpy.load_file(saved / "probe.safetensors")
    for name, tensor in original.items():
        if tensor.dtype == np.int64 and tensor.ndim == 0:
            continue  # the steps that batch norm counted, which predict nothing
        nan = np.full_like(tensor, np.nan) if tensor.dtype.kind == "f" else tensor - 10**6
        for other in (None, nan, tensor[..., None], tensor.astype(np.int8), np.zeros(0, tensor.dtype)):
            rewrite(saved, **{name: other})
            with pytest.raises(ValueError, match=r"probe\.safetensors"):
                load_probe(saved)
            rewrite(saved, **{name: tensor})
    load_probe(saved)


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_cut_tensors_are_refused_by_name(saved, size):
    file = saved / "probe.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    edit(saved / "probe.json", sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match=r"probe\.safetensors"):
        load_probe(saved)


def test_missing_files_are_named(saved):
    (saved / "probe.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no probe.json; want"):
        load_probe(saved)
    with pytest.raises(FileNotFoundError, match=r"has no probe.safetensors and no probe.json; want a folder"):
        load_probe(saved / "nowhere")
