"""The commands, as a user runs them: output, files, exit codes."""

import copy
import importlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from timm.data import ImageNetInfo

from heads import load_probe, save_probe
from tests.helpers import randomise, save_photo
from vitbackbone import FeatureStore, list_backbones, load_backbone
from vitbackbone.checkpoints.zoo import ZOO
from vitbackbone.cli import main


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ordinary photos of two kinds, bright and dark, of many sizes, some grey; and two broken files."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(40):
        kind, low = ("bright", 150) if i % 2 else ("dark", 0)
        shape = (int(rng.integers(68, 200)), int(rng.integers(68, 300)), 3)
        image = Image.fromarray(rng.integers(low, low + 100, shape, dtype=np.uint8))
        (folder / kind).mkdir(exist_ok=True)
        (image.convert("L") if i % 5 == 0 else image).save(folder / kind / f"{i:02}.jpg")
    save_photo(folder / "dark" / "large.jpg", 1600, 2400)
    (folder / "bright" / "broken.jpg").write_bytes((folder / "bright" / "01.jpg").read_bytes()[:700])
    (folder / "dark" / "text.jpg").write_text("not a photo")
    return folder


@pytest.fixture(scope="module")
def store(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store") / "features"
    assert main(["extract", str(photos), "--model", "nano", "--out", str(out), "--tokens", "cls,patches"]) == 0
    return out


def test_extract_gives_every_photo_a_row_and_names_the_broken_ones(photos: Path, store: Path) -> None:
    features = FeatureStore(store)
    assert len(features) == 41
    assert {path for path, _ in features.failed} == {"bright/broken.jpg", "dark/text.jpg"}
    assert features.class_names == ["bright", "dark"]
    assert [path.split("/")[0] for path in features.paths] == [features.class_names[i] for i in features.labels]
    backbone = load_backbone("nano")
    alone = backbone(backbone.preprocess(photos / features.paths[7])[None])
    assert np.allclose(features.cls[7], alone.cls[0].detach(), atol=1e-4)
    assert np.allclose(features.patches(7), alone.patches[0].detach(), atol=1e-4)


def test_extract_says_that_nano_is_small_and_names_a_stronger_one(photos: Path, tmp_path: Path, capsys: object) -> None:
    main(["extract", str(photos), "--out", str(tmp_path / "a")])
    output = capsys.readouterr()
    assert "nano, the small built-in one; for real work give --model vit_small_patch14_dinov2.lvd142m" in output.err
    assert "41 images read, 2 failed" in output.out
    assert "bright/broken.jpg: " in output.out


def test_extract_takes_all_its_options(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "a"
    command = [
        "extract",
        str(photos / "dark" / "*.jpg"),
        "--model",
        "vit_tiny_patch16_224.augreg_in21k",
        "--out",
        str(out),
    ]
    command += ["--weights", "random", "--tokens", "cls,patches", "--layers", "-4,-1", "--batch-size", "7"]
    command += [
        "--shard-size",
        "10",
        "--resolution",
        "32x48",
        "--dtype",
        "float16",
        "--workers",
        "1",
        "--device",
        "cpu",
    ]
    assert main(command) == 0
    features = FeatureStore(out)
    assert features.layers == (8, 11)
    assert features.cls.dtype == np.float16
    assert features.patches(0).shape == (192, 2, 3)
    assert len(list(out.glob("objects/*/*.safetensors"))) == 3


def test_nothing_readable_is_exit_code_1_and_a_whole_store(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_text("x")
    assert main(["extract", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 1
    assert len(FeatureStore(tmp_path / "out").failed) == 1


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
    # All photos vote: a probability far from 0 and 1, which other pixels would change.
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resolution", "224x224x3"], "want a side such as 224"),
        (["--resolution", "0"], "want a side such as 224"),
        (["--layers", "a"], "want numbers such as -1"),
    ],
)
def test_options_say_what_they_want(arguments: list[str], message: str, capsys: object) -> None:
    with pytest.raises(SystemExit):
        main(["extract", "photos", "--out", "x", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_closed_pipe_is_no_error_and_loses_nothing(store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vitbackbone.cli", "probe", str(store), "--out", str(tmp_path / "probe")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=120) == 128 + signal.SIGPIPE
    assert error == ""
    assert load_probe(tmp_path / "probe")


@pytest.mark.promise(19)
def test_an_interrupt_keeps_what_is_done(photos: Path, tmp_path: Path) -> None:
    """A real one, to a process with two workers."""
    command = [sys.executable, "-m", "vitbackbone.cli", "extract", str(photos), "--out", str(tmp_path / "out")]
    command += ["--shard-size", "2", "--workers", "2", "--resolution", "200"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores Ctrl-C
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("done/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "interrupted; what is done is kept" in error
    assert "Traceback" not in error
    assert not (tmp_path / "out" / ".unfinished").exists()
    assert not list((tmp_path / "out").glob("leases/*"))


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


LABELS = ["tench, Tinca tinca", "goldfish", "great white shark", "crane", "hen", "ostrich", "brambling"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, transformers.ViTForImageClassification]:
    """Return a directory that transformers saved, of a model with a classifier and named classes, and the model."""
    config = transformers.ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        id2label=dict(enumerate(LABELS)),
    )
    model = randomise(transformers.ViTForImageClassification(config))
    directory = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(directory)
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(directory)
    return directory, model


def test_classify_prints_the_labels_and_probabilities_of_transformers(
    classifier: tuple[Path, transformers.ViTForImageClassification], tmp_path: Path, capsys: object
) -> None:
    directory, model = classifier
    photos = [str(save_photo(tmp_path / f"{i}.png", 50 + i, 70, seed=i)) for i in range(2)]
    assert main(["classify", *photos, "--model", str(directory), "--top", "99"]) == 0  # seven are all there are
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    processor = transformers.ViTImageProcessorPil.from_pretrained(directory)
    for photo in photos:
        with torch.inference_mode(), Image.open(photo) as image:
            theirs = model(**processor(image, return_tensors="pt")).logits.softmax(dim=1)[0]
        order = theirs.argsort(descending=True)
        assert [label for path, label, _ in lines if path == photo] == [LABELS[i] for i in order]
        ours = [float(probability) for path, _, probability in lines if path == photo]
        assert ours == pytest.approx(theirs[order].tolist(), abs=6e-4)  # three digits are printed
        assert theirs.max() - theirs.min() > 0.1  # which other weights or another photo would not reach


def test_classify_goes_on_after_a_bad_photo(
    classifier: tuple[Path, transformers.ViTForImageClassification], photos: Path, capsys: object
) -> None:
    images = [str(photos / "dark/text.jpg"), str(photos / "dark/02.jpg"), str(photos / "bright/broken.jpg")]
    assert main(["classify", *images, "--model", str(classifier[0])]) == 1
    output = capsys.readouterr()
    assert [line.split("\t")[0] for line in output.out.splitlines()] == [images[1]] * 5
    assert [line.split(":")[0] for line in output.err.splitlines()] == [f"{images[i]}\tfailed" for i in (0, 2)]
    assert main(["classify", images[0], "--model", str(classifier[0])]) == 1
    capsys.readouterr()
    assert main(["classify", *images, "--model", str(classifier[0]), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in rows] == images
    assert [len(row["classes"]) for row in rows if "classes" in row] == [5]
    assert [row["reason"] for row in rows if "reason" in row] == ["unknown format", "damaged"]


def test_classify_names_imagenets_classes_and_counts_those_of_other_weights(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object
) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    small = replace(ZOO[name].config, image_size=(32, 32), patch_size=8, dim=48, depth=2, num_heads=3, mlp_dim=192)
    preprocess = replace(ZOO[name].preprocess, image_size=(32, 32))
    photo, weights = photos / "dark/02.jpg", tmp_path / "weights.pth"
    names = ImageNetInfo().label_descriptions()
    for num_classes, published, named in ((1000, 1000, names.__getitem__), (11, 1000, str), (11, 11, str)):
        entry = replace(ZOO[name], config=small, preprocess=preprocess, num_classes=published)
        monkeypatch.setitem(ZOO, name, entry)
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
        model = randomise(timm.create_model(name.split(".")[0], num_classes=num_classes, **sizes))
        torch.save(model.state_dict(), weights)
        assert main(["classify", str(photo), "--model", name, "--weights", str(weights), "--top", "3"]) == 0
        printed = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
        with torch.inference_mode():
            best = model(preprocess(photo)[None])[0].topk(3).indices
        assert printed == [named(int(i)) for i in best]


def test_classify_says_what_it_cannot_use(
    classifier: tuple[Path, transformers.ViTForImageClassification], photos: Path, tmp_path: Path, capsys: object
) -> None:
    def error(*arguments: str) -> str:
        assert main(["classify", str(photos / "dark/02.jpg"), *arguments]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        return output.err

    assert "nano comes without a classifier; one that has one is hf:google/vit-base-patch16-224" in error(
        "--model", "nano"
    )
    assert "--weights random is an untrained model without a classifier" in error(
        "--model", "deit_tiny_patch16_224.fb_in1k", "--weights", "random"
    )
    assert "--device gpu is not a device" in error("--model", str(classifier[0]), "--device", "gpu")
    shutil.copytree(classifier[0], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "1": "b"}}))
    assert "7 outputs of the classifier, 2 labels" in error("--model", str(tmp_path / "model"))
    del config["id2label"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert main(["classify", str(photos / "dark/02.jpg"), "--model", str(tmp_path / "model"), "--top", "7"]) == 0
    assert {line.split("\t")[1] for line in capsys.readouterr().out.splitlines()} == set("0123456")


def test_show_writes_pictures(tmp_path: Path) -> None:
    photo = save_photo(tmp_path / "photo.png", 60, 100)
    assert main(["show", str(photo), "--out", str(tmp_path / "out"), "--resolution", "32"]) == 0
    with pytest.raises(SystemExit, match="2"):
        sys.exit(main(["show", str(tmp_path / "photo.png"), "--out", str(tmp_path)]))  # its own photo.png
    for name in ("photo", "attention", "rollout", "pca", "overview"):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert np.asarray(picture.convert("RGB")).std() > 1


def test_models_lists_name_size_patch_dim_parameters_licence_and_source(capsys: object) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= len(list_backbones())
    row = next(line for line in lines if line.startswith("vit_base_patch16_224.augreg_in21k "))
    for fact in ("224", "16", "768", "85.8 M", "apache-2.0", "timm/vit_base_patch16_224.augreg_in21k"):
        assert fact in row
    assert main(["models", "*dinov2_vits14*"]) == 0
    assert "vit_base" not in capsys.readouterr().out
    assert main(["models", "zzz"]) == 2


def test_info_and_trace_speak_of_the_model(capsys: object) -> None:
    name = "vit_base_patch16_224.augreg_in21k_ft_in1k"
    assert main(["info", name, "--resolution", "384"]) == 0
    assert "24 x 24 = 576 patches" in capsys.readouterr().out
    assert main(["info", name, "--trace"]) == 0
    text = capsys.readouterr().out
    for fact in ("14 x 14 = 196", "197 x 768", "logits"):
        assert fact in text
    assert "1000" in text.splitlines()[-1]
    for name, reads in {
        "deit_tiny_distilled_patch16_224.fb_in1k": "two linear heads, on CLS and on the distillation token",
        "dinov2_vits14_lc": "a linear head on CLS and the mean of the patches side by side",
    }.items():
        assert main(["info", name, "--trace", "--resolution", "112"]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("logits")
        assert last.endswith(reads)


def test_demo_does_the_whole_job(tmp_path: Path, capsys: object) -> None:
    stale = tmp_path / "demo" / "digits-features" / "manifest.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")  # features of another version are made anew
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    text = capsys.readouterr().out
    assert "1797 images, 0 failed" in text
    for name in ("china", "flower"):
        lines = [line for line in text.splitlines() if line.strip().startswith(name)]
        assert [line.split()[1] for line in lines] == ["32", "128"]
    accuracies = dict(re.findall(r"(raw pixels|nano, CLS|nano, patch map at 4 x 4) +([\d.]+) %", text))
    assert float(accuracies["nano, patch map at 4 x 4"]) > float(accuracies["raw pixels"]) > 90
    assert float(accuracies["nano, CLS"]) > 90
    assert "What next" in text
    assert len(list((tmp_path / "demo").glob("*/overview.png"))) == 2
    assert len(FeatureStore(tmp_path / "demo" / "digits-features")) == 1797


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extract", "/no/such/place", "--out", "x"], "no such file or folder"),
        (["extract", ".", "--out", "x", "--model", "nana"], "did you mean 'nano'"),
        (["probe", "/no/store"], "is not a feature store"),
        (["predict", "a.jpg", "--probe", "/no/probe"], "want a folder written by save_probe"),
        (["show", "/no/photo.jpg", "--out", "x"], "No such file"),
        (["info", "nana"], "did you mean 'nano'"),
        (["extract", ".", "--out", "x", "--device", "gpu"], "--device gpu is not a device"),
    ],
)
def test_wrong_input_is_exit_code_2_and_one_message(arguments: list[str], message: str, capsys: object) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.promise(19)
def test_ctrl_c_is_exit_code_130(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("vitbackbone.store"), "extract", interrupt)
    assert main(["extract", str(photos), "--out", str(tmp_path / "a")]) == 130


def test_the_command_is_installed_as_a_module() -> None:
    result = subprocess.run([sys.executable, "-m", "vitbackbone.cli", "--version"], capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.startswith("vitbackbone ")
