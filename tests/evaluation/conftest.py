"""A tiny dataset that the tests of several protocols share."""

from pathlib import Path

import pytest

from tests.evaluation.classified import make_imagenet


@pytest.fixture
def imagenet(tmp_path) -> Path:
    return make_imagenet(tmp_path / "imagenet", 4, 2)
