"""Whole runs of the dense protocols and retrieval: killed in the middle, resumed, and equal to an undisturbed run."""

import pytest
import torch

from heads import load_head
from tests.evaluation.runs import DENSE, start, written
from tests.helpers import tiny_vit
from vitbackbone.evaluation.methods import dense_head

QUICK = {"depth nyu v3", "retrieval"}
ALIKE = {"depth nyu v3", "davis"}


class Killed(BaseException):
    """A kill that a test can catch."""


def killed_after(backbone, calls):
    """Let the backbone die at a call."""
    count = iter(range(calls))

    def step(*_):
        if next(count, None) is None:
            raise Killed

    return backbone.register_forward_pre_hook(step)


def check_resumes(name, backbone, tmp_path):
    calls = []
    hook = backbone.register_forward_pre_hook(lambda *_: calls.append(1))
    results = start(name, backbone, tmp_path, "whole")
    hook.remove()
    for share in (3, 2):  # killed after a third of the calls, and again
        hook = killed_after(backbone, max(len(calls) // share, 1))
        with pytest.raises(Killed):
            start(name, backbone, tmp_path, "killed")
        hook.remove()
        assert not (tmp_path / "killed/results.json").exists()
    start(name, backbone, tmp_path, "killed")
    assert written(tmp_path / "killed") == written(tmp_path / "whole")
    count = len(calls)
    hook = killed_after(backbone, 0)
    start(name, backbone, tmp_path, "killed")  # nothing is computed again
    hook.remove()
    assert len(calls) == count
    return results


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in DENSE])
def test_a_killed_run_resumes_to_the_same_results(name, tmp_path, monkeypatch):
    monkeypatch.setattr(dense_head, "CHECKPOINTS", 1)
    monkeypatch.setattr("vitbackbone.evaluation.run.CHUNK", 2)
    backbone = tiny_vit(depth=4)
    results = check_resumes(name, backbone, tmp_path)
    for score in results[0].scores:
        assert score.n > 0
        assert score.unit != "%" or -1e-6 <= score.value <= 100 + 1e-6
        assert score.method.startswith("no interval: " if score.interval is None else "95 % ")
    for folder in results[0].heads.values():
        head = load_head(tmp_path / "whole" / folder, backbone)
        with torch.no_grad():
            assert head(*backbone.forward_layers(torch.zeros(1, 3, 32, 32), head.layers, head.needs.norm)).ndim == 4


@pytest.mark.parametrize("name", [n if n in ALIKE else pytest.param(n, marks=pytest.mark.slow) for n in DENSE])
def test_threads_and_several_devices_give_the_results_of_one(name, tmp_path):
    backbone = tiny_vit(depth=4)
    start(name, backbone, tmp_path, "one")
    for options in ({"workers": 2}, {"workers": 1, "devices": ("cpu", "cpu", "cpu")}):
        start(name, backbone, tmp_path, str(options["workers"]), **options)
        assert written(tmp_path / str(options["workers"])) == written(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segmentation ade20k", "depth nyu", "retrieval", "copydays", "mvtec", "corloc v3"])
def test_a_backbone_without_cls_and_norm_runs_and_says_so(name, tmp_path):
    backbone = tiny_vit(depth=4, cls=False, pool="mean", final_norm=False)
    (result,) = start(name, backbone, tmp_path, "out")
    if name != "corloc v3":
        assert any("no final norm" in note for note in result.notes) or name == "depth nyu"
    if name in ("depth nyu", "retrieval", "copydays"):
        assert any("no CLS token" in note for note in result.notes)
