"""Metrics of classification against golden values, and neighbours."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from vitbackbone.evaluation.metrics.accuracy import eleven_point_ap, in_top
from vitbackbone.evaluation.metrics.corruption import ALEXNET, EXTRAS, mean_corruption_error
from vitbackbone.evaluation.metrics.votes import nearest, unit, votes
from vitbackbone.evaluation.subsets import hold_out_share


def test_alexnet_itself_has_a_corruption_error_of_one() -> None:
    assert mean_corruption_error(ALEXNET) == pytest.approx(1, abs=1e-12)
    assert mean_corruption_error(dict.fromkeys(ALEXNET, 0.5)) == pytest.approx(0.646726, abs=1e-6)
    every = ALEXNET | EXTRAS
    assert mean_corruption_error(dict.fromkeys(every, 0.5), every) == pytest.approx(0.651790, abs=1e-6)
    with pytest.raises(ValueError, match="no error for 1 of 15 corruptions: fog"):
        mean_corruption_error({name: 0.5 for name in ALEXNET if name != "fog"})


def test_votes_by_softmax_and_by_exp_are_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    train, queries = (unit(torch.randn(n, 8, generator=generator)) for n in (50, 20))
    labels = np.arange(50) % 7
    blocks = [(start, train[start : start + 16]) for start in range(0, 50, 16)]
    top, rows = nearest(queries, blocks, 10)
    whole = (queries @ train.T).topk(10)
    assert torch.equal(rows, whole.indices)
    soft = (whole.values / 0.07).softmax(dim=1)
    theirs = (torch.nn.functional.one_hot(torch.from_numpy(labels)[rows], 7) * soft[:, :, None]).sum(dim=1)
    ours = votes(top.numpy(), labels[rows.numpy()], 7, 0.07)
    assert np.array_equal(ours.argmax(axis=1), theirs.argmax(dim=1).numpy())
    assert np.allclose(ours / ours.sum(axis=1, keepdims=True), theirs.numpy(), atol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 40, 64])
def test_of_equal_neighbours_the_first_comes_first_in_blocks_of_any_size(size: int) -> None:
    random = torch.Generator().manual_seed(0)
    train, queries = (torch.randint(-1, 2, (n, 3), generator=random).float() for n in (64, 30))  # many are equal
    similar = (queries @ train.T).numpy()
    for k in (1, 5, 20, 99):
        top, rows = nearest(queries, [(i, train[i : i + size]) for i in range(0, 64, size)], k)
        assert np.array_equal(rows.numpy(), np.argsort(-similar, axis=1, kind="stable")[:, :k])
        assert np.array_equal(top.numpy(), np.take_along_axis(similar, rows.numpy(), axis=1))


@pytest.mark.parametrize("classes", [3, 9, 400])
def test_top_k_is_torchmetrics_even_if_most_classes_have_no_vote(classes: int) -> None:
    random = np.random.default_rng(0)
    labels, neighbours = random.integers(0, classes, 300), random.integers(0, classes, (300, 4))
    scores = votes(random.choice([0.5, 0.7], (300, 4)).astype(np.float32), neighbours, classes, 0.07)
    for k in (1, 2, 5):
        theirs = MulticlassAccuracy(classes, top_k=min(k, classes), average="micro")
        wanted = theirs(torch.from_numpy(scores), torch.from_numpy(labels)).item()
        assert in_top(scores, labels, k).mean() == pytest.approx(wanted, abs=1e-6)


def test_the_eleven_points_of_voc() -> None:
    scores, positive = np.array([9.0, 8, 7, 6, 5]), np.array([True, False, True, False, True])
    # Precisions at the positives: 1, 2/3, 3/5, at recalls 1/3, 2/3, 1.
    assert eleven_point_ap(scores, positive) == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11)


def test_a_share_of_each_class_is_held_out() -> None:
    labels = np.array([0] * 25 + [1] * 3 + [2])
    held = hold_out_share(labels, 0.1)
    assert [int(held[labels == label].sum()) for label in range(3)] == [2, 1, 0]
