"""Models of the zoo equal timm at a small width and depth, on identical, fully randomised weights."""

from pathlib import Path

import pytest

from tests.oracles import Case, errors
from tests.small_timm import SMALL_CASES

LIMIT = 1e-5


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_equals_timm(case: Case, tmp_path: Path) -> None:
    model = case.model()
    case.save(model, tmp_path)
    ours = case.load(tmp_path, case.policy)
    for size in case.sizes:
        found = errors(ours, case, model, size, batch=2)
        assert max(found.values()) <= LIMIT, (size, found)
