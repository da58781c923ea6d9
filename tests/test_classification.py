"""The paper's MLP head and DeiT's two, against their formulas; against upstream they are in test_parity."""

import pytest
import torch

from heads import DistilledHead, MlpHead, checkpoint_head
from tests.helpers import randomise, relative_error, tiny_vit
from vitbackbone import Checkpoint


@pytest.mark.parametrize("fields", [{}, {"cls": False, "pool": "mean"}])
def test_the_hidden_layer_is_tanh(fields: dict[str, object]) -> None:
    features = tiny_vit(**fields)(torch.randn(2, 3, 32, 32))
    head = randomise(MlpHead(16, 5, hidden=8))
    (inner, _), outer = head.hidden, head.linear
    want = torch.tanh(features.pooled @ inner.weight.T + inner.bias) @ outer.weight.T + outer.bias
    assert relative_error(head(features), want) < 1e-6


def test_the_linear_head_starts_at_zero_as_in_the_paper() -> None:
    head = MlpHead(16, 5)
    assert not head(tiny_vit()(torch.randn(2, 3, 32, 32))).any()


def test_the_distilled_head_wants_one_distillation_token() -> None:
    images = torch.randn(1, 3, 32, 32)
    DistilledHead(16, 5)(tiny_vit(num_registers=1)(images))
    for wrong in (tiny_vit(), tiny_vit(num_registers=4)):
        with pytest.raises(ValueError, match="one distillation token"):
            DistilledHead(16, 5)(wrong(images))


def test_a_checkpoint_without_a_fitting_classifier_says_so() -> None:
    with pytest.raises(ValueError, match="comes without a classifier"):
        checkpoint_head(Checkpoint(tiny_vit(), {}, ()))
    wide = {"head.weight": torch.zeros(5, 32), "head.bias": torch.zeros(5)}
    with pytest.raises(ValueError, match="reads 32 values"):
        checkpoint_head(Checkpoint(tiny_vit(), wide, ()))
