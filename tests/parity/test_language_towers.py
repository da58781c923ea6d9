"""The vision towers of language models equal transformers on identical, fully randomised weights."""

from pathlib import Path

import pytest

from tests.language_towers import LANGUAGE_CASES
from tests.oracles import Case, errors

LIMIT = 1e-5


@pytest.mark.parametrize("case", LANGUAGE_CASES, ids=lambda case: case.name)
def test_equals_transformers(case: Case, tmp_path: Path) -> None:
    model = case.model()
    case.save(model, tmp_path)
    ours = case.load(tmp_path, case.policy)
    for size in case.sizes:
        found = errors(ours, case, model, size, batch=2)
        assert max(found.values()) <= LIMIT, (size, found)
