"""Whole runs of the dense protocols and retrieval: killed in the middle, resumed, and equal to an undisturbed run."""

import json

import pytest
import torch

from heads import load_head
from tests.evaluation import dense_data
from tests.helpers import tiny_vit
from vitbackbone import load_backbone
from vitbackbone.evaluation import evaluate
from vitbackbone.evaluation.methods import dense

SEGMENTATION = {
    "view.short": 32,
    "view.window": 32,
    "view.stride": 21,
    "view.per_patch": False,
    "fit.steps": 4,
    "fit.batch_size": 2,
    "fit.short": 32,
    "fit.crop": 32,
    "fit.warmup": 1,
}
DEPTH = {"fit.steps": 4, "fit.warmup": 2, "fit.batch_size": 4, "fit.crop": "32,40", "fit.bins": 8, "fit.first_steps": 2}
SMALL = {"view.per_patch": False, "view.short": 48}
# protocol, variant, dataset, makers of its data, settings that make it small
RUNS = {
    "segmentation ade20k": ("segmentation", "v2", {"ade20k": dense_data.ade20k}, SEGMENTATION),
    "segmentation voc12": ("segmentation", "v3", {"voc12": dense_data.voc12}, SEGMENTATION | {"fit.validate_every": 2}),
    "segmentation cityscapes": (
        "segmentation",
        "v2-ms",
        {"cityscapes": dense_data.cityscapes},
        SEGMENTATION | {"view.scales": "1,1.5"},
    ),
    "segmentation folder": (
        "segmentation",
        "v3-paper",
        {"segmentation-folder": dense_data.own_photos},
        SEGMENTATION | {"fit.rates": "0.001,0.003", "fit.weight_decays": "0.0001", "fit.validate_every": 0},
    ),
    "depth nyu": ("depth-nyu", "v2", {"nyu": dense_data.nyu}, DEPTH),
    "depth nyu v3": ("depth-nyu", "v3", {"nyu": dense_data.nyu}, DEPTH),
    "depth kitti": ("depth-kitti", "v2-lin4", {"kitti": dense_data.kitti}, DEPTH | {"view.crop": "32,64"}),
    "retrieval": ("retrieval", "v3", {"roxford5k": dense_data.roxford5k}, {"view.size": 32}),
    "retrieval v1": ("retrieval", "v1-paris", {"roxford5k": dense_data.roxford5k}, {"view.size": 40}),
    "spair official": ("correspondence", "official", {"spair": dense_data.spair}, {}),
    "spair insid3": ("correspondence", "insid3", {"spair": dense_data.spair}, {"view.size": 50}),
    "spair geoaware": ("correspondence", "geoaware", {"spair": dense_data.spair}, {"view.patches": 6}),
    "spair probe3d": ("correspondence", "probe3d", {"spair": dense_data.spair}, {"view.size": 48}),
    "spair v3": ("correspondence", "v3", {"spair": dense_data.spair}, {"view.patches": 6}),
    "davis": ("tracking", "v3", {"davis": dense_data.davis}, SMALL),
    "davis v1": ("tracking", "v1", {"davis": dense_data.davis}, SMALL | {"view.multiple": 16}),
    "mvtec": ("anomaly", "agnostic", {"mvtec": dense_data.mvtec}, {"view.short": 32, "fit.seeds": "0,1"}),
    "copydays": (
        "copies",
        "v1",
        {
            "copydays": dense_data.copydays,
            "copydays-whitening": dense_data.photo_folder,
            "copydays-distractors": dense_data.photo_folder,
        },
        {"view.size": 32},
    ),
    "corloc": ("discovery", "tokencut", {"voc07-boxes": dense_data.voc07_boxes}, {}),
    "corloc lost": ("discovery", "lost", {"coco20k": dense_data.coco20k}, {"fit.k": 10}),
    "corloc v3": ("discovery", "v3", {"voc07-boxes": dense_data.voc07_boxes}, {}),
}
QUICK = {"depth nyu v3", "retrieval"}
ALIKE = {"depth nyu v3", "davis"}


class Killed(BaseException):
    """A kill that a test can catch."""


def run(name, backbone, tmp_path, out, **options):
    protocol, variant, makers, settings = RUNS[name]
    folders = {}
    for dataset, make in makers.items():
        folders[dataset] = tmp_path / "data" / dataset
        if not folders[dataset].exists():
            make(folders[dataset])
    given = {"variant": variant, "settings": settings, "progress": False}
    return evaluate(protocol, backbone, folders, tmp_path / out, **given, **options)


def written(folder):
    results = json.loads((folder / "results.json").read_text())
    for each in results["results"]:
        del each["seconds"]
    return results


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
    results = run(name, backbone, tmp_path, "whole")
    hook.remove()
    for share in (3, 2):  # killed after a third of the calls, and again
        hook = killed_after(backbone, max(len(calls) // share, 1))
        with pytest.raises(Killed):
            run(name, backbone, tmp_path, "killed")
        hook.remove()
        assert not (tmp_path / "killed/results.json").exists()
    run(name, backbone, tmp_path, "killed")
    assert written(tmp_path / "killed") == written(tmp_path / "whole")
    count = len(calls)
    hook = killed_after(backbone, 0)
    run(name, backbone, tmp_path, "killed")  # nothing is computed again
    hook.remove()
    assert len(calls) == count
    return results


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in RUNS])
def test_a_killed_run_resumes_to_the_same_results(name, tmp_path, monkeypatch):
    monkeypatch.setattr(dense, "CHECKPOINTS", 1)
    monkeypatch.setattr("vitbackbone.evaluation.run.CHUNK", 2)
    backbone = tiny_vit(depth=4)
    results = check_resumes(name, backbone, tmp_path)
    for score in results[0].scores:
        assert score.n > 0
        assert score.unit != "%" or -1e-6 <= score.value <= 100 + 1e-6
        assert score.interval is None or score.method
    for folder in results[0].heads.values():
        head = load_head(tmp_path / "whole" / folder, backbone)
        with torch.no_grad():
            assert head(*backbone.forward_layers(torch.zeros(1, 3, 32, 32), head.layers, head.needs.norm)).ndim == 4


@pytest.mark.parametrize("name", [n if n in ALIKE else pytest.param(n, marks=pytest.mark.slow) for n in RUNS])
def test_threads_and_several_devices_give_the_results_of_one(name, tmp_path):
    backbone = tiny_vit(depth=4)
    run(name, backbone, tmp_path, "one")
    for options in ({"workers": 2}, {"workers": 1, "devices": ("cpu", "cpu", "cpu")}):
        run(name, backbone, tmp_path, str(options["workers"]), **options)
        assert written(tmp_path / str(options["workers"])) == written(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segmentation ade20k", "depth nyu", "retrieval", "copydays", "mvtec", "corloc v3"])
def test_a_backbone_without_cls_and_norm_runs_and_says_so(name, tmp_path):
    backbone = tiny_vit(depth=4, cls=False, pool="mean", final_norm=False)
    (result,) = run(name, backbone, tmp_path, "out")
    if name != "corloc v3":
        assert any("no final norm" in note for note in result.notes) or name == "depth nyu"
    if name in ("depth nyu", "retrieval", "copydays"):
        assert any("no CLS token" in note for note in result.notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_nano_runs(name, tmp_path, monkeypatch):
    monkeypatch.setattr(dense, "CHECKPOINTS", 1)
    check_resumes(name, load_backbone("nano"), tmp_path)
