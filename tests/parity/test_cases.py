"""The list that `make parity` measures is whole."""

from pathlib import Path

import pytest

from benchmarks import parity
from benchmarks.parity import GROUPS, UPSTREAMS, group_of, grouped, summary
from tests.oracles.every_case import IMAGE_CASES, SAVED_CASES, SavedCase
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.huggingface import MODEL_TYPES


def test_every_family_has_a_group_and_an_upstream() -> None:
    found = {(case.family, case.upstream) for case in [*IMAGE_CASES, *SAVED_CASES]}
    assert {group_of(family) for family, _ in found} == set(GROUPS)
    assert {upstream for _, upstream in found} == set(UPSTREAMS)
    assert group_of("SAM 2") != group_of("SAM")


def test_names_of_cases_are_distinct_for_each_upstream() -> None:
    names = [(case.upstream, case.name) for case in IMAGE_CASES]
    assert len(set(names)) == len(names)


def test_the_summary_has_a_column_for_each_upstream() -> None:
    worst = {("DINOv2", "timm"): (1e-6, 2), ("DINO", "timm"): (0.0, 1), ("Prithvi", "formula"): (2e-7, 3)}
    lines = summary(grouped(worst)).splitlines()
    assert lines[0] == "| family | against timm | against the paper's formula |"
    assert lines[2] == "| DINO, DINOv2, DINOv3, MoCo v3 | 1e-06 (3) |  |"
    assert lines[3] == "| Prithvi, SatMAE, DOFA, Clay |  | 2e-07 (3) |"


def test_every_native_model_type_has_a_layout() -> None:
    assert {kind.layout for kind in MODEL_TYPES.values()} <= set(FORMATS)


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def error(name: str) -> SavedCase:
        return SavedCase("text towers", "transformers", name, lambda folder: ran.append(name) or {"text": 1e-7})

    monkeypatch.setattr(parity, "IMAGE_CASES", [])
    for names in ("a", "ab", "ab"):
        monkeypatch.setattr(parity, "SAVED_CASES", [error(name) for name in names])
        parity.main(["--only", "text towers, transf", "--resume", str(tmp_path / "rows")])
    assert ran == ["a", "b"]
    parity.main(["--only", "text towers, formula"])
    assert ran == ["a", "b"]
