"""The backbone that the protocols are tested on."""

import pytest

from tests.helpers import tiny_vit


@pytest.fixture(scope="module")
def backbone():
    return tiny_vit(depth=4)
