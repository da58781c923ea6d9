"""The vision tower of a whole model of transformers, saved as its users save it, equals the tower inside."""

from pathlib import Path

import pytest

from tests.helpers import cases
from tests.oracles.whole_models import MODELS, whole_error

LIMIT = 1e-5
QUICK = {"zoedepth", "vitmatte", "vit msn", "sam3", "siglip2"}


@pytest.mark.parametrize("name", cases(MODELS, QUICK))
def test_the_tower_inside_a_whole_model_is_found_and_equal(name: str, tmp_path: Path) -> None:
    assert whole_error(name, tmp_path) <= LIMIT
