"""The metrics of dense protocols and retrieval: golden values of the authors' code, and the formulas written again."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, label
from sklearn.metrics import average_precision_score

from heads import scale_invariant_loss
from vitbackbone.evaluation.metrics.boxes import is_found
from vitbackbone.evaluation.metrics.depth import box_mask, depth_errors
from vitbackbone.evaluation.metrics.keypoints import mean_pck, within
from vitbackbone.evaluation.metrics.masks import contour, contour_f, jaccard
from vitbackbone.evaluation.metrics.ranking import average_precision, micro_average_precision, score_query
from vitbackbone.evaluation.metrics.regions import pro
from vitbackbone.evaluation.metrics.segmentation import areas, iou, mean_iou, remove_zero


def rng(seed=0):
    return np.random.default_rng(seed)


# ---- rankings ------------------------------------------------------------------------------------------------------


def test_average_precision_has_the_authors_values():
    ranked = score_query(np.arange(8), np.array([1, 3, 6]), np.array([0, 4]), (1, 5, 10))
    assert ranked.ap == pytest.approx(0.711111, abs=1e-6)
    assert ranked.precision == pytest.approx((1.0, 0.6, 0.6))
    assert average_precision(np.array([3]), 1) == pytest.approx(0.125)
    relevant = np.array([1, 0, 1, 0, 1, 0])  # of the ranking without junk
    assert average_precision_score(relevant, -np.arange(6)) == pytest.approx(0.755556, abs=1e-6)  # the step rule


def again(ranking, ok, junk, ks):
    """The definition, item by item."""
    position, seen, ap, places = 0, 0, 0.0, []
    for item in ranking:
        if item in ok:
            before = 1.0 if position == 0 else seen / position
            seen += 1
            ap += (before + seen / (position + 1)) / 2
            places.append(position + 1)
        position += item not in junk
    precision = [sum(p <= min(max(places), k) for p in places) / min(max(places), k) for k in ks]
    return ap / len(ok), precision


@pytest.mark.parametrize("seed", range(4))
def test_a_query_is_scored_as_its_definition_says(seed):
    ranking = rng(seed).permutation(40)
    ok, junk, _ = np.split(rng(seed + 9).permutation(40), [7, 15])
    ranked = score_query(ranking, ok, junk, (1, 5, 10, 100))
    ap, precision = again(ranking.tolist(), set(ok.tolist()), set(junk.tolist()), (1, 5, 10, 100))
    assert ranked.ap == pytest.approx(ap, abs=1e-9)
    assert ranked.precision == pytest.approx(precision, abs=1e-9)


def test_a_query_without_positives_is_left_out():
    assert score_query(np.arange(4), np.array([], dtype=int), np.array([1]), (1,)) is None


def test_micro_average_precision_counts_missed_pairs():
    scores, right = np.array([0.9, 0.8, 0.7]), np.array([True, False, True])
    assert micro_average_precision(scores, right, 2) == pytest.approx((1 + 2 / 3) / 2)
    assert micro_average_precision(scores, right, 4) == pytest.approx((1 + 2 / 3) / 4)


# ---- segmentation --------------------------------------------------------------------------------------------------


def test_mean_iou_has_the_authors_value():
    predicted, truth = np.array([[0, 0, 1], [1, 2, 2]]), np.array([[1, 1, 2], [3, 3, 0]])
    assert mean_iou(areas(predicted, remove_zero(truth), 4)) == pytest.approx(0.666667, abs=1e-6)


def test_iou_is_over_the_set_and_leaves_ignored_pixels_out():
    images = [(rng(i).integers(0, 5, (6, 7)), rng(i + 50).choice([0, 1, 2, 3, 255], (6, 7))) for i in range(3)]
    total = sum(areas(predicted, truth, 6) for predicted, truth in images)
    p, t = (np.concatenate([each[i].ravel() for each in images]) for i in (0, 1))
    p, t = p[t != 255], t[t != 255]
    wanted = [((p == k) & (t == k)).sum() / ((p == k) | (t == k)).sum() for k in range(5)]
    assert iou(total)[:5] == pytest.approx(wanted)
    assert np.isnan(iou(total)[5])
    assert mean_iou(total) == pytest.approx(np.mean(wanted))


# ---- masks ---------------------------------------------------------------------------------------------------------


def square(shift, size=(480, 854)):
    mask = np.zeros(size, dtype=bool)
    mask[100:200, 100 + shift : 200 + shift] = True
    return mask


@pytest.mark.parametrize("shift", [0, 5, 8, 9])
def test_j_and_f_of_a_moved_square_have_the_authors_values(shift):
    assert jaccard(square(shift), square(0)) == pytest.approx((100 - shift) / (100 + shift))
    f = contour_f(square(shift), square(0))
    assert f == pytest.approx(1.0) if shift <= 8 else f == pytest.approx(0.54, abs=5e-3)


def test_f_equals_dilation_by_a_disk():
    predicted, truth = (rng(i).random((60, 90)) > 0.5 for i in (1, 2))
    predicted, truth = binary_dilation(predicted[:, :], iterations=1) & (rng(3).random((60, 90)) > 0.3), truth
    radius = math.ceil(0.008 * math.hypot(60, 90))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = x**2 + y**2 <= radius**2
    found, wanted = contour(predicted), contour(truth)
    precision = (found & binary_dilation(wanted, disk)).sum() / found.sum()
    recall = (wanted & binary_dilation(found, disk)).sum() / wanted.sum()
    assert contour_f(predicted, truth) == pytest.approx(2 * precision * recall / (precision + recall))


def test_contours_at_the_border_count_only_neighbours_in_the_image():
    mask = np.zeros((4, 5), dtype=bool)
    mask[2:, 3:] = True
    assert contour(mask).astype(int).tolist() == [[0] * 5, [0, 0, 1, 1, 1], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0]]
    assert not contour(np.ones((4, 5), dtype=bool)).any()


def test_empty_masks_agree():
    empty = np.zeros((20, 30), dtype=bool)
    full = empty.copy()
    full[5:9, 5:9] = True
    assert (jaccard(empty, empty), contour_f(empty, empty)) == (1.0, 1.0)
    assert (jaccard(empty, full), contour_f(empty, full), contour_f(full, empty)) == (0.0, 0.0, 0.0)


# ---- regions -------------------------------------------------------------------------------------------------------


def test_pro_has_the_authors_value():
    masks, maps = np.zeros((2, 8, 8), dtype=bool), np.zeros((2, 8, 8))
    masks[0, 0:2, 0:2] = masks[0, 5:7, 5] = True
    maps[0, 0:2, 0], maps[0, 5:7, 5], maps[1, 0, :4] = 3, 2, 1
    assert pro([*maps], [*masks]) == pytest.approx(0.780760, abs=1e-6)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_pro_is_the_mean_overlap_at_each_threshold(limit):
    maps = rng(1).integers(0, 30, (3, 9, 11)) / 7  # with equal scores
    masks = rng(2).random((3, 9, 11)) > 0.8
    regions = [(i, labelled == k) for i, m in enumerate(masks) for labelled, n in [label(m, np.ones((3, 3)))]
               for k in range(1, n + 1)]  # fmt: skip
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        overlap = np.mean([(maps[i][region] >= threshold).mean() for i, region in regions])
        points.append(((maps[~masks] >= threshold).mean(), overlap))
    x, y = np.array(points).T
    grid = np.unique(np.concatenate([x[x <= limit], [limit]]))
    area = 0.0
    for left, right in pairwise(grid):  # at equal rates the curve jumps to its last value
        start = y[x == left].max() if (x == left).any() else np.interp(left, x, y)
        end = y[x == right].min() if (x == right).any() else np.interp(right, x, y)
        area += (start + end) / 2 * (right - left)
    assert pro([*maps], [*masks], limit) == pytest.approx(area / limit, abs=1e-9)


# ---- depth ---------------------------------------------------------------------------------------------------------


def test_depth_has_the_authors_values():
    truth, predicted = np.array([[1.0, 2.0, 4.0]]), np.array([[1.0, 3.0, 3.0]])
    errors = depth_errors(predicted, truth, truth > 0)
    assert errors["rmse"] == pytest.approx(0.816497, abs=1e-6)
    loss = scale_invariant_loss(torch.from_numpy(predicted)[None, None], torch.from_numpy(truth)[None, None])
    assert loss.item() == pytest.approx(0.348442, abs=1e-6)


def test_depth_errors_are_over_the_known_pixels():
    truth, predicted = rng(1).uniform(0.5, 9, (5, 6)), rng(2).uniform(0.5, 9, (5, 6))
    known = box_mask((5, 6), (0.2, 0.99, 0.0, 0.7))
    errors = depth_errors(predicted, truth, known)
    pairs = [(predicted[i, j], truth[i, j]) for i in range(1, 4) for j in range(4)]
    wanted = math.sqrt(sum((p - t) ** 2 for p, t in pairs) / 12)
    logs = [math.log(p) - math.log(t) for p, t in pairs]
    assert errors["rmse"] == pytest.approx(wanted)
    assert errors["a1"] == pytest.approx(sum(max(p / t, t / p) < 1.25 for p, t in pairs) / 12)
    assert errors["abs_rel"] == pytest.approx(sum(abs(p - t) / t for p, t in pairs) / 12)
    assert errors["log_10"] == pytest.approx(sum(abs(math.log10(p / t)) for p, t in pairs) / 12)
    assert errors["silog"] == pytest.approx(100 * np.std(logs))
    assert math.isnan(depth_errors(predicted, truth, np.zeros((5, 6), dtype=bool))["rmse"])


# ---- keypoints and boxes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "right"), [("<=", [True, True, False]), ("<", [True, False, False])])
def test_a_keypoint_at_the_threshold_is_right_only_with_at_most(rule, right):
    assert within(np.array([3.0, 10.0, 11.0]), 100.0, 0.1, rule).tolist() == right


def test_means_of_pck_weigh_pairs_points_or_categories():
    pairs = {"cat": [np.array([True]), np.array([True, False, False])], "dog": [np.array([True, True])]}
    assert mean_pck(pairs, "pair") == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert mean_pck(pairs, "point") == pytest.approx(4 / 6)
    assert mean_pck(pairs, "category") == pytest.approx((2 / 4 + 1) / 2)


def test_a_box_is_found_at_half_overlap():
    truth = np.array([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]])
    assert is_found(np.array([0.0, 0.0, 10.0, 5.0]), truth)
    assert not is_found(np.array([0.0, 0.0, 10.0, 4.9]), truth)
