"""The held-out split: shares of classes, groups that stay together, and what random labels score."""

import numpy as np
import pytest

from heads import KnnProbe, LinearProbe, hold_out, join_groups


def of_samples(codes: np.ndarray, share: float) -> np.ndarray:
    """The split of samples without groups, spelled out: the first of each class in a shuffled order."""
    order = np.random.RandomState(0).permutation(len(codes))
    held = np.zeros(len(codes), dtype=bool)
    for label in np.unique(codes):
        rows = [row for row in order if codes[row] == label]
        held[rows[: max(1, round(len(rows) * share)) if len(rows) > 1 else 0]] = True
    return held


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_without_groups_the_first_of_each_class_in_a_shuffled_order_are_held_out(seed, share):
    codes = np.random.default_rng(seed).integers(0, 7, 200) ** 2 // 7
    np.testing.assert_array_equal(hold_out(codes, share), of_samples(codes, share))
    np.testing.assert_array_equal(
        hold_out(codes, share, groups=np.arange(200)[::-1].astype(str)), of_samples(codes, share)
    )


@pytest.mark.parametrize("seed", range(20))
def test_groups_stay_together_and_each_class_keeps_its_share(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 120, 600)
    classes = rng.integers(0, 4, 120)[groups]
    codes = np.where(rng.random(600) < 0.1, rng.integers(0, 4, 600), classes)  # some copies have another label
    held = hold_out(codes, 0.2, groups)
    assert not set(groups[held]) & set(groups[~held])
    for label in range(4):
        assert 0.1 < held[codes == label].mean() < 0.35


def test_a_large_group_is_left_where_smaller_ones_make_the_share():
    codes, groups = np.zeros(100, int), np.minimum(np.arange(100), 40)  # one group of 60
    held = hold_out(codes, 0.2, groups)
    assert held.sum() == 20
    assert not held[40:].any()
    assert hold_out(codes[:90], 0.2, np.arange(90) // 45).sum() == 45  # two groups: one is measured, one is fitted on


@pytest.mark.parametrize(
    ("codes", "groups"),
    [([0, 0, 0, 1, 1], [1, 1, 1, 2, 3]), ([0, 0, 1, 1], [5, 6, 5, 6]), ([0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 1])],
)
def test_every_class_keeps_a_sample_to_fit_on(codes, groups):
    held = hold_out(codes, 0.5, groups)
    assert set(np.array(codes)[~held]) == set(codes)


def test_samples_without_a_label_are_not_held_out():
    codes = np.array([0, -1, 0, 1, -1, 1, 0, 1])
    held = hold_out(codes, 0.5)
    assert held.any()
    assert not held[codes < 0].any()
    assert not hold_out(np.full(4, -1), 0.2).any()
    assert not hold_out(np.array([], int), 0.2).any()


def test_wrong_arguments_are_refused():
    for codes, share, groups, match in [
        ([0, -2], 0.2, None, "class indices"),
        ([0.5, 1], 0.2, None, "class indices"),
        ([0, 1], 0, None, "share must be between 0 and 1"),
        ([0, 1], 1.0, None, "share must be between 0 and 1"),
        ([0, 1], 0.2, [1], "inconsistent numbers of samples"),
    ]:
        with pytest.raises(ValueError, match=match):
            hold_out(codes, share, groups)


def test_groups_join_by_way_of_others():
    assert join_groups([0, 0, 1, 2, 3], ["a", "b", "b", "c", "d"]).tolist() == [0, 0, 0, 1, 2]
    assert len(set(join_groups([3, 1, 3])[[0, 2]])) == 1
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 80, (2, 100))
    joined = join_groups(a, b)
    label = np.arange(100)
    for _ in range(100):  # the smallest sample that each can reach
        for part in (a, b):
            label = np.array([label[part == group].min() for group in part])
    assert len(set(zip(joined, label, strict=True))) == len(set(joined)) == len(set(label))


@pytest.mark.parametrize("copies", [2, 5])
def test_random_labels_score_chance_on_copies(copies):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), copies)
    X, y = rng.normal(size=(300, 8))[groups], rng.integers(0, 2, 300)[groups]
    held = hold_out(y, 0.2, groups)
    assert KnnProbe(k=1).fit(X[~held], y[~held]).score(X[held], y[held]) < 0.7
    leaking = hold_out(y, 0.2)
    assert KnnProbe(k=1).fit(X[~leaking], y[~leaking]).score(X[leaking], y[leaking]) > 0.8


def test_the_sweep_chooses_by_copies_that_stay_together():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(80, 200)), rng.integers(0, 2, 80)
    alone = LinearProbe("dinov2").fit(X, y)
    groups = np.tile(np.arange(80), 6)
    copied = LinearProbe("dinov2").fit(X[groups], y[groups])
    near = X[groups] + 1e-3 * rng.normal(size=(480, 200))  # a burst: no copies, but for the groups
    grouped = LinearProbe("dinov2").fit(near, y[groups], groups=groups)
    leaking = LinearProbe("dinov2").fit(near, y[groups])
    for probe in (copied, grouped):
        assert probe.C_ < 1e-2 * leaking.C_ or probe.C_ <= alone.C_
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        LinearProbe().fit(X, y, groups=groups)
