"""Wrong commands, wrong layouts, damaged files and changed ones: each is a sentence, and nothing is lost."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from heads import load_head
from tests.evaluation.classified import SMALL, WNIDS, make_imagenet, picture, save
from tests.evaluation.fine_data import pets
from tests.helpers import tiny_vit
from vitbackbone import evaluate
from vitbackbone.cli import main
from vitbackbone.evaluation import (
    PROTOCOLS,
    Score,
    find_layout,
    find_protocol,
    variants,
)
from vitbackbone.evaluation.augmentation import Augmentation, Augmented
from vitbackbone.evaluation.datasets import Images
from vitbackbone.evaluation.metrics.intervals import none
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.runner import _check_scores
from vitbackbone.evaluation.views import CropView

FAST = {**SMALL, "fit.ks": "3"}


@pytest.fixture
def imagenet(tmp_path) -> Path:
    return make_imagenet(tmp_path / "imagenet", 4, 2)


def test_imagenet_v2_counts_in_numbers_not_in_letters(tmp_path) -> None:
    for label in (0, 1, 2, 10, 100):
        save(tmp_path / str(label) / "a.jpeg", label, 0)
    images = find_layout("imagenet-v2").read(tmp_path)
    assert images.labels.tolist() == [0, 1, 2, 10, 100]


def test_every_protocol_is_described_and_names_known_datasets(capsys) -> None:
    assert main(["evaluate", "list"]) == 0
    listed = capsys.readouterr().out
    for name in PROTOCOLS:
        assert f"\n{name} " in f"\n{listed}"
        for each in variants(name):
            assert all(setting.meaning and setting.source for setting in each.settings()), (name, each.variant)
            kinds = {find_layout(data).kind for data in each.datasets}
            assert each.kind in kinds, name
            for data in (*each.also, *each.optional):
                find_layout(data)
            assert len({other.hash() for other in variants(name)}) >= 1
    assert main(["evaluate", "describe", "knn", "--set", "ks=7"]) == 0
    assert "fit.ks              7 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["knnn", "--data", "imagenet=IN"], "unknown protocol 'knnn', did you mean 'knn'"),
        (["knn", "--data", "imagenett=IN"], "unknown dataset 'imagenett', did you mean 'imagenet'"),
        (["knn", "--data", "imagenet=nowhere"], "--data imagenet=nowhere: there is no such folder"),
        (["knn", "--data", "imagenet-v2=IN"], "none of these protocols reads imagenet-v2"),
        (["knn", "--data", "IN", "--variant", "v9"], "knn has no variant 'v9'"),
        (["knn", "--data", "IN", "--set", "fit.kz=3"], "--set fit.kz: no such setting, did you mean 'fit.ks'"),
        (["knn", "--data", "IN", "--set", "fit.ks=a"], "--set fit.ks=a; want a whole number"),
        (["knn", "--data", "IN", "--set", "fit.ks=3,0"], "--set fit.ks=3,0; want at least 1"),
        (["linear", "--data", "IN", "--set", "fit.batch=0"], "--set fit.batch=0; want at least 1"),
        (["linear", "--data", "IN", "--set", "rates=0.1,-1"], "--set fit.rates=0.1,-1; want at least 0"),
        (["knn", "--data", "IN", "--set", "ks=none"], "--set fit.ks=none; want at least one value"),
        (["linear", "--data", "IN", "--set", "rates=inf"], "--set fit.rates=inf; want finite numbers"),
        (["linear", "--data", "IN", "--set", "choose=train"], "--set metric.choose=train; want one of test"),
        (["logistic", "--data", "IN", "--set", "powers=0,1"], "--set fit.powers=0,1; want 3 values"),
        (["knn", "--data", "IN", "--set", "temperature=nan"], "--set fit.temperature=nan; want at least 1e-06"),
        (
            ["knn", "linear", "--data", "IN", "--set", "blocks=1,2"],
            "knn: --set features.blocks=1,2; want a whole",
        ),
        (["imagenet-v2", "--data", "IN"], "imagenet-v2 also needs --data imagenet-v2=DIR"),
        (["knn"], "give --data NAME=DIR"),
        (["list", "all"], "takes nothing more"),
        (["report", "nowhere"], "nowhere has no results.json"),
    ],
)
def test_a_wrong_command_is_a_sentence(command, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vitbackbone.cli.evaluating.load", lambda args: pytest.fail("the weights are loaded first"))
    make_imagenet(tmp_path / "IN", 1, 1)
    assert main(["evaluate", *command, "--out", "out", "-q"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "val").rename(root / "test"), "has no folder val; the official layout is"),
        (
            lambda root: (root / "val" / WNIDS[0]).rename(root / "gone"),
            "val has no image of 1 classes that train has",
        ),
        (
            lambda root: [each.unlink() for each in (root / "train" / WNIDS[0]).iterdir()],
            "train has no image of 1 classes that val has",
        ),
        (lambda root: (root / "train").rename(root / "val" / "train"), "has no folder train; did you mean .*/val"),
        (
            lambda root: (root / "val" / WNIDS[0] / os.fsdecode(b"caf\xe9.JPEG")).write_bytes(b""),
            r"caf\\xe9.JPEG', which is not UTF-8; rename it",
        ),
        (lambda root: save(root / "val" / "n09999999" / "a.JPEG", 0, 0), "1 folders that are no class, such as n0999"),
        (
            lambda root: (
                [each.rename(root / "val" / each.name) for each in (root / "val").rglob("*.JPEG")]
                + [each.rmdir() for each in (root / "val").iterdir() if each.is_dir()]
            ),
            "val has no class folders; its 8 images lie outside of class folders: sort them by their list of labels",
        ),
        (
            lambda root: [
                (root / "train").rename(root / "gone"),
                (root / "train").mkdir(),
                (root / "train" / "n01440764.tar").touch(),
            ],
            "train has no class folders; unpack its 1 archives, each into a folder of its name",
        ),
    ],
)
def test_a_wrong_layout_is_a_sentence_before_anything_is_computed(spoil, message, imagenet, tmp_path) -> None:
    spoil(imagenet)
    with pytest.raises(ValueError, match=message):
        evaluate("knn", tiny_vit(), imagenet, tmp_path / "out", settings=FAST, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("imagenet-real", lambda root: (root / "real.json").write_text("[[0]]"), "real.json has no list for"),
        (
            "imagenet-a",
            lambda root: save(root / "n09999999" / "a.jpg", 0, 0),
            "n09999999, which is no class of the Image",
        ),
        ("imagenet-v2", lambda root: save(root / "7" / "a.jpg", 0, 0), "has the class 7, and the ImageNet given has 4"),
        (
            "imagenet-c",
            lambda root: [save(root / f"fog/{i}/{WNIDS[0]}/a.jpg", 0, 0) for i in range(1, 6)],
            "no error for 14",
        ),
        ("dtd", lambda root: None, "has no file labels/train1.txt; the official layout is"),
    ],
)
def test_other_datasets_are_looked_at_before_hours_are_spent(
    name, make, message, imagenet, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("vitbackbone.evaluation.vectors.extract", lambda *_, **__: pytest.fail("something is computed"))
    other = tmp_path / "other"
    other.mkdir()
    make(other)
    data = {"imagenet": imagenet, name: other}
    protocol = "fine-s" if name == "dtd" else name
    if name == "dtd":
        pets(tmp_path)
        data = {"pets": tmp_path, name: other}
    with pytest.raises(ValueError, match=message):
        evaluate(protocol, tiny_vit(), data, tmp_path / "out", progress=False)


@pytest.mark.parametrize("turn", range(2, 9))
def test_photos_are_shown_as_they_are_stored_unless_asked(turn: int, tmp_path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    picture(0, 0).save(tmp_path / "turned.jpg", exif=exif)
    picture(0, 0).save(tmp_path / "plain.jpg")
    backbone, crop = tiny_vit(), Augmentation(size=32)
    for upright in (False, True):
        view = CropView(short=36, crop=32, upright=upright).preprocess(backbone)
        images = Images(tmp_path, ["turned.jpg", "plain.jpg"], np.zeros(2, dtype=np.int64), ["a"])
        augmented = Augmented(images, view, crop, 0, upright)
        for turned, plain in (
            (view(tmp_path / "turned.jpg"), view(tmp_path / "plain.jpg")),
            (augmented[0, 5][1], augmented[1, 5][1]),
        ):
            assert torch.equal(turned, plain) is not upright


def test_check_counts_against_the_official_numbers(imagenet, capsys) -> None:
    assert main(["evaluate", "check", "knn", "--data", str(imagenet)]) == 1
    out = capsys.readouterr().out
    assert "training images: 16, official 1,281,167" in out
    assert main(["evaluate", "check", "knn", "--data", str(imagenet), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["counts"]["test images"] == 8


def test_a_corrupt_image_is_left_out_and_named(imagenet, tmp_path) -> None:
    (imagenet / "val" / WNIDS[0] / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"\xff\xd8 no image")
    (imagenet / "train" / WNIDS[1] / f"{WNIDS[1]}_0.JPEG").write_bytes(b"")
    result = evaluate("knn", tiny_vit(), imagenet, tmp_path / "out", settings=FAST, progress=False)["knn"]
    assert result.scores[0].n == 7
    assert len(result.unreadable) == 2
    assert "1 of 8 images of imagenet test could not be read and are left out" in result.notes
    settings = {**SMALL, "fit.size": 32, "fit.steps": 4, "fit.batch": 8, "features.blocks": 1}
    result = evaluate("linear", tiny_vit(), imagenet, tmp_path / "out", settings=settings, progress=False)["linear"]
    assert "1 training images could not be read and are left out of the fit" in result.notes
    again = evaluate("linear", tiny_vit(), imagenet, tmp_path / "out", settings=settings, progress=False)["linear"]
    assert (again.notes, again.unreadable) == (result.notes, result.unreadable)  # although nothing is computed again


def test_what_has_changed_is_computed_again(imagenet, tmp_path) -> None:
    def values(out: str) -> tuple[list[float], list[str]]:
        (result,) = evaluate("knn", backbone, imagenet, tmp_path / out, settings=FAST, progress=False)
        return [each.value for each in result.scores], list(result.notes)

    backbone, file = tiny_vit(), imagenet / "val" / WNIDS[0] / "ILSVRC2012_val_00000001.JPEG"
    good = file.read_bytes()
    file.write_bytes(good[:200])
    assert "1 of 8 images" in values("out")[1][0]
    file.write_bytes(good)
    whole = values("out")
    assert whole == (values("repaired")[0], [])
    noise = np.random.default_rng(0)
    for each in imagenet.rglob("*.JPEG"):  # other photos of the same names and labels
        Image.fromarray(noise.integers(0, 255, (40, 44, 3), dtype=np.uint8)).save(each)
    assert values("out") != whole


@pytest.mark.slow
def test_a_head_of_another_backbone_or_setting_is_kept(imagenet, tmp_path) -> None:
    out, small = tmp_path / "out", {**SMALL, "fit.powers": "0,0,1", "view.short": 32}
    options = {"settings": small, "progress": False}
    first, second = (evaluate("logistic", tiny_vit(depth=n), imagenet, out, **options)[0] for n in (1, 2))
    limited = evaluate("logistic", tiny_vit(depth=1), imagenet, out, limit=12, **options)[0]
    assert len({each.heads["logistic"] for each in (first, second, limited)}) == 3
    assert load_head(out / first.heads["logistic"], tiny_vit(depth=1)) is not None


def test_a_folder_of_something_else_is_left_alone(imagenet, tmp_path) -> None:
    (tmp_path / "store" / "snapshots").mkdir(parents=True)
    with pytest.raises(ValueError, match="store is a feature store of `extract`; give another folder for results"):
        evaluate("knn", tiny_vit(), imagenet, tmp_path / "store", settings=FAST, progress=False)
    assert len([*(tmp_path / "store").iterdir()]) == 1


def test_a_figure_that_is_no_number_is_a_sentence(tmp_path) -> None:
    run = Run(find_protocol("segmentation"), tiny_vit(), "ade20k", {"ade20k": tmp_path}, tmp_path)
    with pytest.raises(ValueError, match="segmentation on ade20k has no mIoU: no label of the tested images counts"):
        _check_scores(run, [Score("mIoU", float("nan"), 1, none("nothing counts"))])
