"""The framework: golden values, settings, pickles, resuming, results, reports, gaps, and the commands of the pages."""

import inspect
import os
import pickle
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassAccuracy

from tests.evaluation.classified import SMALL, WNIDS, make_imagenet
from tests.helpers import TINY, randomise, tiny_vit
from vitbackbone import ViT, evaluate, load_backbone
from vitbackbone.cli import main
from vitbackbone.cli.arguments import parser
from vitbackbone.cli.evaluating import VERBS
from vitbackbone.evaluation import (
    figures,
    find_layout,
    find_protocol,
    read_pickle,
    read_results,
    variants,
    write_report,
)
from vitbackbone.evaluation.gaps import explain
from vitbackbone.evaluation.metrics.accuracy import eleven_point_ap, in_top
from vitbackbone.evaluation.metrics.corruption import ALEXNET, EXTRAS, mean_corruption_error
from vitbackbone.evaluation.metrics.votes import nearest, unit, votes
from vitbackbone.evaluation.published import find_figure, published_model
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.runner import plan
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


@pytest.mark.parametrize("size", [1, 7, 40, 64])
def test_of_equal_neighbours_the_first_comes_first_in_blocks_of_any_size(size: int) -> None:
    random = torch.Generator().manual_seed(0)
    train, queries = (torch.randint(-1, 2, (n, 3), generator=random).float() for n in (64, 30))  # many are equal
    similar = (queries @ train.T).numpy()
    for k in (1, 5, 20, 99):
        top, rows = nearest(queries, [(i, train[i : i + size]) for i in range(0, 64, size)], k)
        assert np.array_equal(rows.numpy(), np.argsort(-similar, axis=1, kind="stable")[:, :k])
        assert np.array_equal(top.numpy(), np.take_along_axis(similar, rows.numpy(), axis=1))


@pytest.mark.parametrize("classes", [3, 9, 400])
def test_top_k_is_torchmetrics_even_if_most_classes_have_no_vote(classes: int) -> None:
    random = np.random.default_rng(0)
    labels, neighbours = random.integers(0, classes, 300), random.integers(0, classes, (300, 4))
    scores = votes(random.choice([0.5, 0.7], (300, 4)).astype(np.float32), neighbours, classes, 0.07)
    for k in (1, 2, 5):
        theirs = MulticlassAccuracy(classes, top_k=min(k, classes), average="micro")
        wanted = theirs(torch.from_numpy(scores), torch.from_numpy(labels)).item()
        assert in_top(scores, labels, k).mean() == pytest.approx(wanted, abs=1e-6)


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


# ---- results ---------------------------------------------------------------------------------------------------------


def evaluate_commands() -> list[str]:
    """The commands of the README and of all pages, each on one line."""
    root = Path(__file__).parents[2]
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    code = "\n".join(
        block for page in pages for block in re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(), re.S)
    )
    return re.findall(r"^vitbackbone evaluate .*$", code.replace("\\\n", " "), re.M)


def test_the_commands_of_all_pages_are_whole(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    planned = 0
    for line in evaluate_commands():
        args = parser().parse_args(shlex.split(line, comments=True)[1:])
        if args.what[0] not in VERBS:
            for given in args.data:
                Path(given.rpartition("=")[2]).mkdir(parents=True, exist_ok=True)
            settings = dict(each.split("=", 1) for each in args.set or ())
            pairs, _ = plan(args.what, dict(each.split("=", 1) for each in args.data), args.variant, settings)
            assert args.out, line
            planned += len(pairs)
    assert planned > 9


def test_results_join_in_one_folder_and_are_reported(imagenet, tmp_path, capsys) -> None:
    out, backbone = tmp_path / "out", tiny_vit()
    for ks in ("3", "1", "3"):
        evaluate("knn", backbone, imagenet, out, settings={**SMALL, "fit.ks": ks}, progress=False)
    results = read_results(out)
    assert [each.settings["fit.ks"] for each in results] == [[3], [1]]
    assert results[0].hash != results[1].hash
    assert torch.__version__.startswith(results[0].versions["torch"])
    assert main(["evaluate", "report", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "| knn (v2) | imagenet | top-1 (k=3) |" in shown
    assert len({len(line) for line in shown.splitlines() if line.startswith("|")}) == 1  # aligned
    assert "not the whole official dataset (16 of 1,281,167 training images, 8 of 50,000 test images, 4 of" in shown
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
