"""The records of the dense protocols: their settings, their published figures, and the heads that they train."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from heads import load_head
from tests.evaluation.protocols.small_runs import features, start
from vitbackbone.evaluation import figures, find_protocol, variants

OWN = ("segmentation", "depth-nyu", "depth-kitti", "retrieval", "correspondence", "tracking", "anomaly", "copies",
       "discovery")  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_every_setting_has_a_meaning_and_a_source(name):
    for protocol in variants(name):
        for each in protocol.settings():
            assert each.meaning, each.key
            assert each.source, each.key
        assert protocol.traps
        assert protocol.summary.endswith(".")


def test_published_figures_belong_to_a_variant_and_a_dataset():
    for figure in figures():
        if figure.protocol in OWN:
            protocol = find_protocol(figure.protocol, figure.variant)
            assert figure.dataset in protocol.datasets
            assert figure.source
    assert {figure.protocol for figure in figures()} >= set(OWN)


def test_the_heads_of_the_papers_are_those_of_the_package(backbone, tmp_path: Path):
    settings = {"fit__steps": 2, "fit__warmup": 1, "fit__batch_size": 2, "fit__crop": "32,40", "fit__bins": 8}
    results, _ = start("depth-nyu", backbone, tmp_path, "v3", **settings)
    head = load_head(tmp_path / "out" / next(iter(results[0].heads.values())), backbone)
    found = features(backbone, torch.zeros(1, 3, 32, 40))[0]
    x = F.batch_norm(found.patches, head.bn.running_mean, head.bn.running_var, head.bn.weight, head.bn.bias)
    with torch.no_grad():
        weights = F.conv2d(x, head.linear.weight, head.linear.bias).relu() + 0.1
        want = (weights * torch.linspace(0.001, 10, 8)[:, None, None]).sum(1) / weights.sum(1)
        assert torch.allclose(head.maps(found)[:, 0], want, atol=1e-4)
