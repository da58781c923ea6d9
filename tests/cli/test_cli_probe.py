"""`probe` and `predict`: what is measured, saved and predicted, and which stores and probes are refused."""

import copy
import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from heads import load_probe, save_probe
from tests.helpers import save_photo
from vitbackbone import FeatureStore
from vitbackbone.cli import main


@pytest.mark.parametrize("kind", ["linear", "knn", "attentive"])
def test_probe_measures_saves_and_predicts(
    store: Path, photos: Path, tmp_path: Path, kind: str, capsys: object
) -> None:
    out = tmp_path / "probe"
    assert main(["probe", str(store), "--probe", kind, "--out", str(out), "--k", "3"]) == 0
    text = capsys.readouterr().out
    assert "accuracy 1.0000 (95% interval" in text
    assert "bright" in text
    assert "groups, held out of" in text
    assert not list(out.glob("*.pkl"))
    assert json.loads((out / "probe.json").read_text())["kind"] == kind
    assert main(["predict", str(photos / "dark/02.jpg"), str(photos / "bright/03.jpg"), "--probe", str(out)]) == 0
    first = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert first[0][1] == "dark"
    assert first[2][1] == "bright"
    assert float(first[0][2]) > 0.5


def test_probe_on_a_test_store_counts_its_images(store: Path, photos: Path, tmp_path: Path, capsys: object) -> None:
    test = tmp_path / "test"
    folder = tmp_path / "only"
    folder.mkdir()
    (folder / "dark").symlink_to(photos / "dark")
    main(["extract", str(folder), "--out", str(test), "--tokens", "cls,patches"])
    capsys.readouterr()
    assert main(["probe", str(store), "--test", str(test)]) == 0
    text = capsys.readouterr().out
    assert "21 of 21" in text  # class 0 of this store is class 1 of the other, matched by name


def test_probe_refuses_stores_of_other_features_and_without_labels(
    store: Path, photos: Path, tmp_path: Path, capsys: object
) -> None:
    other = tmp_path / "other"
    main(["extract", str(photos), "--out", str(other), "--resolution", "16"])
    assert main(["probe", str(store), "--test", str(other)]) == 2
    assert "hold different features: their preprocessing differs" in capsys.readouterr().err
    unlabelled = tmp_path / "unlabelled"
    main(["extract", str(photos / "dark" / "*.jpg"), "--out", str(unlabelled)])
    assert main(["probe", str(unlabelled)]) == 2
    assert "has no labels" in capsys.readouterr().err


def test_predict_refuses_other_weights(store: Path, photos: Path, tmp_path: Path, capsys: object) -> None:
    main(["probe", str(store), "--out", str(tmp_path / "probe")])
    probe, about = load_probe(tmp_path / "probe")
    for change in (
        {"weights_sha256": "0" * 64},
        {"spec": {**about["store"]["model"]["spec"], "settings": "x"}},
    ):
        changed = copy.deepcopy(about)
        changed["store"]["model"].update(change)
        save_probe(probe, tmp_path / "probe", about=changed)
        assert main(["predict", str(photos / "dark/02.jpg"), "--probe", str(tmp_path / "probe")]) == 2
        assert "fitted on another backbone than this nano" in capsys.readouterr().err
    save_probe(probe, tmp_path / "probe", about={})
    assert main(["predict", str(photos / "dark/02.jpg"), "--probe", str(tmp_path / "probe")]) == 2
    assert "not saved by `vitbackbone probe`" in capsys.readouterr().err


@pytest.mark.parametrize("tokens", ["patches", "cls"])
def test_predict_sees_what_the_probe_was_fitted_on(photos: Path, tmp_path: Path, tokens: str, capsys: object) -> None:
    """Layer, resolution, aspect and kind of features, all other than the defaults."""
    store, out = tmp_path / "store", tmp_path / "probe"
    options = ["--layers", "-1,1", "--resolution", "24x40", "--keep-aspect", "--tokens", tokens, "--dtype", "float32"]
    assert main(["extract", str(photos), "--out", str(store), *options]) == 0
    assert main(["probe", str(store), "--preset", "dinov2", "--out", str(tmp_path / "linear")]) == 0
    assert load_probe(tmp_path / "linear")[0].preset == "dinov2"
    # All photos vote, so the probability is far from 0 and 1, and other pixels would change it.
    assert main(["probe", str(store), "--probe", "knn", "--k", "41", "--out", str(out)]) == 0
    capsys.readouterr()
    features, (probe, _) = FeatureStore(store), load_probe(out)
    assert features.manifest["preprocessing"]["keep_aspect"] is True
    rows = [3, 17, 30]
    assert main(["predict", *(str(photos / features.paths[i]) for i in rows), "--probe", str(out)]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    for i, (_, _, printed) in zip(rows, lines[::2], strict=True):  # two classes, two lines
        x = features.cls[i] if tokens == "cls" else features.patches(i).mean(axis=(1, 2))
        assert float(printed) == pytest.approx(probe.predict_proba(x[None]).max(), abs=2e-3)


def test_probe_says_what_it_cannot_measure(photos: Path, tmp_path: Path, capsys: object) -> None:
    def store_of(name: str, classes: dict[str, int]) -> str:
        seeds = itertools.count()
        for kind, count in classes.items():
            for i in range(count):
                save_photo(tmp_path / name / kind / f"{i}.png", seed=next(seeds))
        main(["extract", str(tmp_path / name), "--out", str(tmp_path / f"{name}-store")])
        return str(tmp_path / f"{name}-store")

    assert main(["probe", store_of("one class", {"a": 4})]) == 2
    assert "has the one class 'a'; want at least two" in capsys.readouterr().err
    assert main(["probe", store_of("singles", {"a": 1, "b": 1})]) == 2
    assert "only one image in each class and none to measure on" in capsys.readouterr().err
    assert main(["probe", store_of("few", {"a": 2, "b": 2, "c": 1})]) == 0
    assert "measured on 2 images in 2 of 5 groups, held out" in capsys.readouterr().out


def test_probe_refuses_a_test_store_of_another_kind_of_features(
    store: Path, photos: Path, tmp_path: Path, capsys: object
) -> None:
    other = tmp_path / "patches"
    main(["extract", str(photos), "--out", str(other), "--tokens", "patches"])
    assert main(["probe", str(store), "--test", str(other)]) == 2
    assert "want the same" in capsys.readouterr().err


@pytest.mark.slow
def test_a_closed_pipe_is_no_error_and_loses_nothing(store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vitbackbone.cli", "probe", str(store), "--out", str(tmp_path / "probe")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=120) == 128 + signal.SIGPIPE
    assert error == ""
    assert load_probe(tmp_path / "probe")


def test_predict_goes_on_after_a_bad_photo(store: Path, photos: Path, tmp_path: Path, capsys: object) -> None:
    main(["probe", str(store), "--out", str(tmp_path / "probe")])
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    images = [str(photos / "dark/text.jpg"), str(photos / "dark/02.jpg"), str(tmp_path / "bomb.png")]
    assert main(["predict", *images, "--probe", str(tmp_path / "probe")]) == 1
    output = capsys.readouterr()
    assert "text.jpg\tfailed" in output.err
    assert "bomb.png\tfailed" in output.err
    assert "02.jpg\tdark" in output.out
    assert main(["predict", images[0], "--probe", str(tmp_path / "probe")]) == 1
