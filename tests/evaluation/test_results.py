"""Results and reports, with the published figures and the known effects of settings beside them."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from tests.evaluation.classified import FAST, SMALL, WNIDS
from tests.helpers import TINY, randomise, tiny_vit
from vitbackbone import ViT, evaluate
from vitbackbone.cli import main
from vitbackbone.cli.arguments import parser
from vitbackbone.cli.commands.evaluate import VERBS
from vitbackbone.evaluation import (
    figures,
    find_protocol,
    read_results,
    variants,
    write_report,
)
from vitbackbone.evaluation.gaps import explain
from vitbackbone.evaluation.published import find_figure, published_model
from vitbackbone.evaluation.runner import plan


def named(name: str) -> ViT:
    """A tiny backbone that is called as a published one."""
    return randomise(ViT(TINY, name=name))


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
    with pytest.raises(ValueError, match=r"results.json is not a complete JSON file"):
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
