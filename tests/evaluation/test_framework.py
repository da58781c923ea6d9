"""The framework: golden values, settings, pickles, layouts, resuming, results, reports, gaps, and the command."""

import inspect
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from heads import load_head
from tests.evaluation.classified import SMALL, WNIDS, make_imagenet, save
from tests.evaluation.fine_data import pets
from tests.helpers import TINY, randomise, tiny_vit
from vitbackbone import ViT, evaluate, load_backbone
from vitbackbone.cli import main
from vitbackbone.evaluation import (
    PROTOCOLS,
    Score,
    figures,
    find_layout,
    find_protocol,
    read_pickle,
    read_results,
    variants,
    write_report,
)
from vitbackbone.evaluation.gaps import explain
from vitbackbone.evaluation.methods.resampled import mean_interval
from vitbackbone.evaluation.metrics.accuracy import eleven_point_ap, ranked
from vitbackbone.evaluation.metrics.corruption import ALEXNET, EXTRAS, mean_corruption_error
from vitbackbone.evaluation.metrics.intervals import bootstrap, spread
from vitbackbone.evaluation.metrics.votes import nearest, unit, votes
from vitbackbone.evaluation.published import find_figure, published_model
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.runner import _check_scores
from vitbackbone.evaluation.subsets import hold_out_share

FAST = {**SMALL, "fit.ks": "3"}


def named(name: str) -> ViT:
    """A tiny backbone that is called as a published one."""
    return randomise(ViT(TINY, name=name))


@pytest.fixture
def imagenet(tmp_path) -> Path:
    return make_imagenet(tmp_path / "imagenet", 4, 2)


# ---- golden values ---------------------------------------------------------------------------------------------------


def test_alexnet_itself_has_a_corruption_error_of_one() -> None:
    assert mean_corruption_error(ALEXNET) == pytest.approx(1, abs=1e-12)
    assert mean_corruption_error(dict.fromkeys(ALEXNET, 0.5)) == pytest.approx(0.646726, abs=1e-6)
    every = ALEXNET | EXTRAS
    assert mean_corruption_error(dict.fromkeys(every, 0.5), every) == pytest.approx(0.651790, abs=1e-6)
    with pytest.raises(ValueError, match="no error for 1 of 15 corruptions: fog"):
        mean_corruption_error({name: 0.5 for name in ALEXNET if name != "fog"})


def test_votes_by_softmax_and_by_exp_are_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    train, queries = (unit(torch.randn(n, 8, generator=generator)) for n in (50, 20))
    labels = np.arange(50) % 7
    blocks = [(start, train[start : start + 16]) for start in range(0, 50, 16)]
    top, rows = nearest(queries, blocks, 10)
    whole = (queries @ train.T).topk(10)
    assert torch.equal(rows, whole.indices)
    soft = (whole.values / 0.07).softmax(dim=1)
    theirs = (torch.nn.functional.one_hot(torch.from_numpy(labels)[rows], 7) * soft[:, :, None]).sum(dim=1)
    ours = votes(top.numpy(), labels[rows.numpy()], 7, 0.07)
    assert np.array_equal(ours.argmax(axis=1), theirs.argmax(dim=1).numpy())
    assert np.allclose(ours / ours.sum(axis=1, keepdims=True), theirs.numpy(), atol=1e-6)


def test_ranks_are_those_of_a_stable_sort() -> None:
    scores = np.random.default_rng(0).integers(0, 4, (200, 9)).astype(float)
    for count in (1, 5, 9, 12):
        assert np.array_equal(ranked(scores, count), np.argsort(-scores, axis=1, kind="stable")[:, :count])


def test_the_eleven_points_of_voc() -> None:
    scores, positive = np.array([9.0, 8, 7, 6, 5]), np.array([True, False, True, False, True])
    # Precisions at the positives: 1, 2/3, 3/5, at recalls 1/3, 2/3, 1.
    assert eleven_point_ap(scores, positive) == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11)


def test_a_share_of_each_class_is_held_out() -> None:
    labels = np.array([0] * 25 + [1] * 3 + [2])
    held = hold_out_share(labels, 0.1)
    assert [int(held[labels == label].sum()) for label in range(3)] == [2, 1, 0]


# ---- pickles ---------------------------------------------------------------------------------------------------------


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
        (lambda root: save(root / "val" / "n09999999" / "a.JPEG", 0, 0), "1 folders that are no class, such as n0999"),
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


def test_intervals_of_other_figures() -> None:
    low, high = bootstrap(lambda rows: float(rows.mean()), 100)
    spread_of_a_mean = 1.96 * np.arange(100).std() / 10
    assert (low, high) == pytest.approx((49.5 - spread_of_a_mean, 49.5 + spread_of_a_mean), abs=1.5)
    assert spread([(2.0, 0.5, 100), (1.0, 0.1, 50)]) == pytest.approx(1.96 * np.sqrt(4 * 0.25 / 100 + 0.09 / 50))


def test_a_figure_that_is_no_number_is_a_sentence(tmp_path) -> None:
    run = Run(find_protocol("segmentation"), tiny_vit(), "ade20k", {"ade20k": tmp_path}, tmp_path)
    with pytest.raises(ValueError, match="segmentation on ade20k has no mIoU: no label of the tested images counts"):
        _check_scores(run, [Score("mIoU", float("nan"), 1)])
    assert all(map(np.isnan, mean_interval(np.array([np.nan]))))


# ---- resuming --------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


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


# ---- results ---------------------------------------------------------------------------------------------------------


def test_results_join_in_one_folder_and_are_reported(imagenet, tmp_path, capsys) -> None:
    out, backbone = tmp_path / "out", tiny_vit()
    for ks in ("3", "1", "3"):
        evaluate("knn", backbone, imagenet, out, settings={**SMALL, "fit.ks": ks}, progress=False)
    results = read_results(out)
    assert [each.settings["fit.ks"] for each in results] == [[3], [1]]
    assert results[0].hash != results[1].hash
    assert torch.__version__.startswith(results[0].versions["torch"])
    assert main(["evaluate", "report", str(out)]) == 0
    assert "| knn (v2) | imagenet | top-1 (k=3) |" in capsys.readouterr().out
    assert "<table>" in (out / "report.html").read_text()
    assert r"\begin{tabular}" in (out / "report.tex").read_text()
    (out / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results.json is not a whole JSON file"):
        read_results(out)


def test_the_report_of_a_run_that_has_not_ended_says_how_it_goes_on(tmp_path, capsys) -> None:
    (tmp_path / "work").mkdir()
    assert main(["evaluate", "report", str(tmp_path)]) == 2
    assert "no protocol is finished yet: give the command of this run again" in capsys.readouterr().err


def test_a_published_figure_stands_beside_a_whole_run_alone(imagenet, tmp_path, monkeypatch) -> None:
    from vitbackbone.evaluation import runner

    backbone = named("vit_small_patch14_dinov2.lvd142m")
    official = {"training images": 16, "test images": 8, "classes": 4}
    real = runner.find_layout
    monkeypatch.setattr(
        runner, "find_layout", lambda name: real(name).__class__(**{**vars(real(name)), "official": official})
    )
    settings = {**SMALL, "fit.ks": "20"}
    result = evaluate("knn", backbone, imagenet, tmp_path / "out", settings=settings, progress=False)[0]
    score = result.scores[0]
    assert score.published.value == 79.0
    assert score.published.source.startswith("arXiv 2304.07193")
    assert score.difference == pytest.approx(score.value - 79.0)
    assert any(gap.startswith("view.crop is 32, the paper has 224") for gap in score.gaps)
    limited = evaluate("knn", backbone, imagenet, tmp_path / "out", settings=settings, limit=5, progress=False)[0]
    assert limited.scores[0].published is None
    assert "so no published figure stands beside it" in str(read_results(tmp_path / "out"))


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


def test_figures_are_found_by_the_names_that_models_are_loaded_by() -> None:
    assert published_model("vit_small_patch14_dinov2.lvd142m") == "DINOv2 ViT-S/14"
    assert published_model("hf:facebook/dinov2-with-registers-giant") == "DINOv2-reg ViT-g/14"
    assert published_model("vit_small_plus_patch16_dinov3.lvd1689m") == "DINOv3 ViT-S+/16"
    assert published_model("nano") is None
    known = {(each.protocol, each.variant) for each in figures()}
    assert all(any(record.variant == variant for record in variants(name)) for name, variant in known)
    figure = find_figure("vit_giant_patch14_reg4_dinov2.lvd142m", "linear", "v3-paper", "imagenet", "top-1")
    assert (figure.value, figure.variant) == (87.3, "v3-paper")
    assert find_figure("vit_large_patch14_dinov2", "imagenet-c", "v2", "imagenet", "mCE").value == 31.5


def test_a_gap_names_the_setting_and_its_known_effect() -> None:
    here, paper = find_protocol("linear", "v2").values(), find_protocol("linear", "v3-paper").values()
    found = {gap.key: gap for gap in explain("linear", here, paper)}
    assert "87.1 to 87.3" in found["view.tokens"].effect
    assert "at most 0.7" in found["fit.rates"].effect
    assert found["features.blocks"].effect == "effect unmeasured"
    assert explain("linear", here, here) == []


def test_reports_cannot_be_steered_by_names(imagenet, tmp_path) -> None:
    (imagenet / "val" / WNIDS[0] / "<script>|x.JPEG").write_bytes(b"no image")
    evaluate("knn", named("a|<b>"), imagenet, tmp_path / "out", settings=FAST, progress=False)
    for file in write_report(read_results(tmp_path / "out"), tmp_path / "out"):
        assert "<script>" not in file.read_text()
