"""Metrics of classification, intervals and ranks against golden values."""

import numpy as np
import pytest
import torch

from vitbackbone.evaluation.metrics.accuracy import eleven_point_ap, ranked
from vitbackbone.evaluation.metrics.corruption import ALEXNET, EXTRAS, mean_corruption_error
from vitbackbone.evaluation.metrics.intervals import bootstrap, spread
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


def test_ranks_are_those_of_a_stable_sort() -> None:
    scores = np.random.default_rng(0).integers(0, 4, (200, 9)).astype(float)
    for count in (1, 5, 9, 12):
        assert np.array_equal(ranked(scores, count), np.argsort(-scores, axis=1, kind="stable")[:, :count])


def test_the_eleven_points_of_voc() -> None:
    scores, positive = np.array([9.0, 8, 7, 6, 5]), np.array([True, False, True, False, True])
    # Precisions at the positives: 1, 2/3, 3/5, at recalls 1/3, 2/3, 1.
    assert eleven_point_ap(scores, positive) == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11)


def test_a_share_of_each_class_is_held_out() -> None:
    labels = np.array([0] * 25 + [1] * 3 + [2])
    held = hold_out_share(labels, 0.1)
    assert [int(held[labels == label].sum()) for label in range(3)] == [2, 1, 0]


def test_intervals_of_other_figures() -> None:
    low, high = bootstrap(lambda rows: float(rows.mean()), 100)
    spread_of_a_mean = 1.96 * np.arange(100).std() / 10
    assert (low, high) == pytest.approx((49.5 - spread_of_a_mean, 49.5 + spread_of_a_mean), abs=1.5)
    assert spread([(2.0, 0.5, 100), (1.0, 0.1, 50)]) == pytest.approx(1.96 * np.sqrt(4 * 0.25 / 100 + 0.09 / 50))
