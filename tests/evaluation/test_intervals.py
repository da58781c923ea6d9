"""Confidence intervals: their kinds against closed formulas, and the units that each protocol draws."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import tiny_vit
from vitbackbone.evaluation import find_protocol
from vitbackbone.evaluation.metrics.accuracy import mean_per_class
from vitbackbone.evaluation.metrics.intervals import Interval, bootstrap, of_mean, of_sums, standard_error, wilson
from vitbackbone.evaluation.metrics.keypoints import Mean, mean_pck
from vitbackbone.evaluation.protocols.anomaly import of_photos as of_category
from vitbackbone.evaluation.protocols.correspondence import _interval as of_pck
from vitbackbone.evaluation.protocols.imagenet_variants import Part, _of_photos
from vitbackbone.evaluation.protocols.logistic import Answers
from vitbackbone.evaluation.protocols.tracking import _mean as of_videos
from vitbackbone.evaluation.run import Run


def normal(centre: float, error: float) -> tuple[float, float]:
    return centre - 1.96 * error, centre + 1.96 * error


def width(interval: Interval) -> float:
    assert interval.bounds is not None
    return interval.bounds[1] - interval.bounds[0]


def draws(counts: Sequence[int]) -> list[list[np.ndarray]]:
    """The documented draws: a fixed seed, and each kind of unit by itself."""
    random = np.random.RandomState(0)
    return [[random.randint(0, count, count) for count in counts] for _ in range(200)]


def test_a_share_has_wilsons_interval() -> None:
    p, n, z = 0.3, 200, 1.959964
    centre, half = p + z**2 / 2 / n, z * np.sqrt(p * (1 - p) / n + z**2 / 4 / n**2)
    bounds = np.array([centre - half, centre + half]) / (1 + z**2 / n)
    assert wilson(np.arange(n) < 60) == (pytest.approx(100 * bounds, abs=1e-4), "95 % Wilson interval")


def test_a_mean_varies_as_its_standard_error_says() -> None:
    values = np.random.default_rng(0).normal(3, 1, 400)
    found = of_mean(np.append(values, np.nan), "photos", 100)
    assert found.method == "95 % percentile bootstrap over photos, 1000 draws"
    error = values.std() / np.sqrt(400)
    assert found.bounds == pytest.approx(normal(100 * values.mean(), 100 * error), abs=1.2)
    drawn = bootstrap(lambda rows: float(values[rows].mean()), [400], "images")
    assert drawn.bounds == pytest.approx(normal(values.mean(), error), abs=0.03)
    centred = standard_error(3.0, lambda rows: float(values[rows].mean()), 400, "images")
    assert centred.bounds == pytest.approx(normal(3.0, error), abs=0.02)
    assert centred.method == "95 % normal interval with the bootstrap's standard error over images, 200 draws"


def test_a_ratio_of_sums_varies_as_the_delta_method_says() -> None:
    random = np.random.default_rng(0)
    count = random.integers(1, 9, 300)
    right = random.binomial(count, 0.7)
    found = of_sums(np.stack([right, count], axis=1), lambda total: float(total[0] / total[1]), "videos")
    ratio = right.sum() / count.sum()
    error = np.sqrt(((right - ratio * count) ** 2).sum()) / count.sum()
    assert found.bounds == pytest.approx(normal(ratio, error), abs=0.006)


def test_tries_and_images_vary_together() -> None:
    random = np.random.default_rng(0)
    tries, images = random.normal(0, 1, 20), random.normal(0, 3, 90)
    table = tries[:, None] + images
    found = bootstrap(lambda t, i: float(table[np.ix_(t, i)].mean()), table.shape, "tries and images")
    error = np.sqrt(tries.var() / 20 + images.var() / 90)
    assert width(found) == pytest.approx(2 * 1.96 * error, rel=0.25)
    alone = bootstrap(lambda t, i: float(table[:1][np.ix_(t, i)].mean()), (1, 90), "images")
    assert width(alone) == pytest.approx(2 * 1.96 * images.std() / np.sqrt(90), rel=0.25)


def test_what_cannot_be_drawn_says_why() -> None:
    assert of_mean(np.array([0.5, np.nan]), "categories") == (None, "no interval: there are not several categories")
    assert bootstrap(lambda rows: 0.0, [1], "images").method == "no interval: there are not several images"
    assert standard_error(1.0, lambda rows: 0.0, 1, "images").bounds is None
    assert bootstrap(lambda rows: float("nan"), [5], "images") == (None, "no interval: no draw has a figure")


# ---- units of the protocols ------------------------------------------------------------------------------------------


def test_a_photo_is_drawn_with_all_its_corruptions() -> None:
    random = np.random.default_rng(0)
    wrong, weights = random.random((6, 40)) < random.random(40), random.random(6)  # hard photos are hard throughout
    rows = [random.permutation(40) for _ in weights]
    parts = [Part(float(w), row, each[row]) for w, row, each in zip(weights, rows, wrong, strict=True)]
    found = _of_photos(parts, 40)
    assert found.bounds == pytest.approx(of_mean(weights @ wrong, "photos").bounds)
    independent = np.sqrt(
        sum(w**2 * each.mean() * (1 - each.mean()) / 40 for w, each in zip(weights, wrong, strict=True))
    )
    assert width(found) > 1.2 * 2 * 1.96 * independent


def test_the_objects_of_a_video_are_drawn_together() -> None:
    videos = [np.full(3, value) for value in np.random.default_rng(0).random(30)]
    score = of_videos("J&F", videos)
    assert (score.n, score.value) == (90, pytest.approx(100 * np.mean(videos)))
    assert score.interval.bounds == pytest.approx(of_mean(np.array([each[0] for each in videos]), "", 100).bounds)
    assert score.interval.method == "95 % percentile bootstrap over videos with all their objects, 1000 draws"


@pytest.mark.parametrize("mean", ["pair", "point", "category"])
def test_pairs_of_keypoints_are_drawn_for_every_mean(mean: Mean) -> None:
    random = np.random.default_rng(0)
    pairs = {name: [random.random(random.integers(1, 9)) < share for _ in range(60)] for name, share in
             (("cat", 0.3), ("dog", 0.8))}  # fmt: skip
    found, flat = of_pck(pairs, mean), [(name, each) for name, own in pairs.items() for each in own]
    again = []
    for _ in range(300):
        drawn = {"cat": [], "dog": []}
        for i in random.integers(120, size=120):
            drawn[flat[i][0]].append(flat[i][1])
        again.append(100 * mean_pck(drawn, mean))
    assert found.bounds == pytest.approx(np.percentile(again, [2.5, 97.5]), abs=2)


def test_the_photos_of_a_category_are_drawn() -> None:
    random = np.random.default_rng(0)
    defective = np.arange(15) > 5
    scores = [random.random(15) + 0.3 * defective for _ in range(2)]
    aurocs = []
    for (rows,) in draws([15]):
        good, bad = rows[rows < 6], rows[rows > 5]
        if len(good) and len(bad):
            pairs = [np.sign(s[bad][:, None] - s[good]) / 2 + 0.5 for s in scores]
            aurocs.append(100 * np.mean([each.mean() for each in pairs]))
    found = of_category([{"scores": each, "defective": defective} for each in scores])
    assert found.bounds == pytest.approx(np.percentile(aurocs, [2.5, 97.5]))


def test_few_shots_and_means_per_class_are_drawn_by_tries_and_images(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    run = Run(find_protocol("logistic", "mieb"), tiny_vit(), "pets", {}, tmp_path)
    labels = random.integers(0, 4, 50)
    tries = [np.where(random.random(50) < 0.6, labels, random.integers(0, 4, 50)) for _ in range(3)]
    score = Answers("pets", "mean per class", tries, labels).score(run)
    values = [100 * mean_per_class(each, labels) for each in tries]
    again = [100 * np.mean([mean_per_class(tries[t][i], labels[i]) for t in chosen]) for chosen, i in draws((3, 50))]
    assert (score.value, score.n) == (pytest.approx(np.mean(values)), 50)
    assert score.interval.bounds == pytest.approx(np.percentile(again, [2.5, 97.5]))
    assert run.facts["tries of mean per class of pets"]["sample standard deviation"] == pytest.approx(
        np.std(values, ddof=1)
    )
    assert Answers("pets", "top-1", tries[:1], labels).score(run).interval == wilson(tries[0] == labels)
