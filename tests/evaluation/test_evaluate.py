"""`evaluate`: wrong commands and layouts are refused in sentences, and a killed or changed run is resumed."""

import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from heads import load_head
from tests.evaluation.classified import FAST, SMALL, WNIDS, make_imagenet, picture, save
from tests.evaluation.fine_data import pets
from tests.helpers import tiny_vit
from vitbackbone import evaluate, load_backbone
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

# ---- layouts and errors ----------------------------------------------------------------------------------------------


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
    assert main(["evaluate", "describe", "knn", "linear", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert [(each["name"], each["variant"]) for each in described] == [
        (each.name, each.variant) for name in ("knn", "linear") for each in variants(name)
    ]


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
    monkeypatch.setattr(
        "vitbackbone.cli.commands.evaluate.load", lambda args: pytest.fail("the weights are loaded first")
    )
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
        (lambda root: save(root / "val" / "n09999999" / "a.JPEG", 0, 0), "1 folders that are not classes, such as n09"),
        (
            lambda root: (
                [each.rename(root / "val" / each.name) for each in (root / "val").rglob("*.JPEG")]
                + [each.rmdir() for each in (root / "val").iterdir() if each.is_dir()]
            ),
            "val has no class folders; its 8 images are outside of class folders: sort them by their list of labels",
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
            "n09999999, which is not a class of the Image",
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


@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
def test_training_crops_are_resized_by_the_filter_of_their_settings(filter: str, tmp_path) -> None:
    photo = picture(0, 0).resize((48, 48))
    photo.save(tmp_path / "a.png")
    crop = Augmentation(size=32, least=1.0, most=1.0, aspect=1.0, flip=0.0, interpolation=filter)
    images = Images(tmp_path, ["a.png"], np.zeros(1, dtype=np.int64), ["a"])
    _, pixels = Augmented(images, tiny_vit().preprocess, crop, 0)[0, 0]
    want = photo.resize((32, 32), getattr(Image.Resampling, filter.upper()))
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(want))


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


# ---- resuming --------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["knn", pytest.param("attentive", marks=pytest.mark.slow)])
def test_what_an_earlier_run_kept_serves_no_other_top_k(name, imagenet, tmp_path) -> None:
    noise = np.random.default_rng(0)
    for each in (imagenet / "val").rglob("*.JPEG"):  # photos that show nothing
        Image.fromarray(noise.integers(0, 255, (40, 44, 3), dtype=np.uint8)).save(each)
    settings = {**SMALL, "fit.ks": "3", "fit.size": 32, "fit.epochs": 1}
    own = {key: value for key, value in settings.items() if key in find_protocol(name).names()}
    found = [
        [
            each.value
            for each in evaluate(name, tiny_vit(), imagenet, tmp_path / out, settings=more, progress=False)[0].scores
        ]
        for out, more in (("a", own | {"top": "1,2"}), ("a", own | {"top": "1,4"}), ("b", own | {"top": "1,4"}))
    ]
    assert found[1] == found[2] != found[0]


@pytest.mark.parametrize("name", ["linear", pytest.param("attentive", marks=pytest.mark.slow)])
def test_a_fit_that_is_killed_goes_on_where_it_was(name, imagenet, tmp_path, monkeypatch) -> None:
    from vitbackbone.evaluation import training

    settings = {**SMALL, "fit.size": 32, "fit.batch": 4, "features.blocks": 1, "fit.steps": 8, "fit.epochs": 2}
    own = {key: value for key, value in settings.items() if key in find_protocol(name).names()}
    backbone, options = tiny_vit(), {"settings": own, "progress": False}
    whole = evaluate(name, backbone, imagenet, tmp_path / "whole", **options)[0]
    monkeypatch.setattr(training, "KEEP_SECONDS", -1.0)
    keep, kept = training._keep, []

    def dying(*arguments) -> None:
        keep(*arguments)
        kept.append(arguments[-1])
        if len(kept) == 3:
            raise Killed

    monkeypatch.setattr(training, "_keep", dying)
    with pytest.raises(Killed):
        evaluate(name, backbone, imagenet, tmp_path / "killed", **options)
    monkeypatch.setattr(training, "_keep", keep)
    again = evaluate(name, backbone, imagenet, tmp_path / "killed", **options)[0]
    assert kept == [1, 2, 3]
    assert again.model_dump(exclude={"seconds"}) == whole.model_dump(exclude={"seconds"})


@pytest.mark.slow
def test_several_devices_give_the_features_of_one(imagenet, tmp_path) -> None:
    one, several = (
        evaluate(["knn", "linear"], load_backbone("nano"), imagenet, tmp_path / name, **options, progress=False)
        for name, options in (
            ("one", {"settings": {**FAST, "fit.size": 32, "fit.steps": 2, "fit.batch": 4}}),
            ("two", {"settings": {**FAST, "fit.size": 32, "fit.steps": 2, "fit.batch": 4}, "devices": ("cpu", "cpu")}),
        )
    )
    for each, other in zip(one, several, strict=True):
        assert [score.value for score in each.scores] == [score.value for score in other.scores]


def test_a_limit_shortens_a_fit_unless_its_steps_are_given(tmp_path) -> None:
    run = Run(find_protocol("segmentation", "v3"), tiny_vit(), "ade20k", {}, tmp_path, limit=101)
    fit = run.shortened(run.protocol.fit, 20_210)
    assert (fit.steps, fit.warmup, fit.validate_every, fit.batch_size) == (200, 8, 25, 16)
    assert "--limit shortens the fit to 200 steps, so that each image is seen as often" in run.notes
    assert run.shortened(run.protocol.fit, 101) == run.protocol.fit
    run.protocol = run.protocol.with_settings({"fit.steps": "300"})
    assert run.shortened(run.protocol.fit, 20_210).steps == 300


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        *(("workers", given, "a whole number of at least 0") for given in (2.5, "2", None, True, -1)),
        *(("batch_size", given, "a whole number of at least 1") for given in (2.5, "4", None, True, 0)),
        *(("limit", given, "a whole number of at least 1") for given in (2.5, "3", True, 0)),
        *(("settings", given, "a dict of settings") for given in (["fit.ks"], "fit.ks=3", {1: 2})),
        *(("devices", given, "a list of names") for given in ("cpu", "", 1, (0, 1))),
    ],
)
def test_an_argument_of_another_type_is_refused_before_anything_is_read(
    name: str, given: object, wanted: str, tmp_path: Path
) -> None:
    (tmp_path / "imagenet").mkdir()  # reading it would raise an error of the layout
    options: dict[str, Any] = {name: given}
    unchecked = inspect.unwrap(evaluate)  # without the type checker of the tests
    with pytest.raises(ValueError, match=f"^{name}={re.escape(repr(given))}; want {wanted}"):
        unchecked("knn", tiny_vit(), tmp_path / "imagenet", tmp_path / "out", progress=False, **options)
    assert not (tmp_path / "out").exists()
