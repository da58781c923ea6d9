"""The small datasets, made in the layouts that they are distributed in."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tests.evaluation.classified import SMALL
from tests.evaluation.fine_data import FITTED, MAKERS, TESTED, voc
from tests.helpers import tiny_vit
from vitbackbone import Preprocess, evaluate
from vitbackbone.evaluation import LayoutError, find_layout
from vitbackbone.evaluation.metrics.accuracy import eleven_point_ap, mean_per_class


@pytest.mark.parametrize("name", sorted({*MAKERS} - {"voc2007"}))
def test_a_small_dataset_is_read_as_distributed(name, tmp_path) -> None:
    with pytest.raises(LayoutError, match="the official layout is"):
        find_layout(name).read(tmp_path)
    MAKERS[name](tmp_path)
    data = find_layout(name).read(tmp_path)
    assert data.train.labels.tolist() == FITTED
    assert data.test.labels.tolist() == TESTED
    assert len(data.train.classes) == 2
    for images in (data.train, data.test):
        assert all((images.root / each).is_file() for each in images.names)
    assert set(find_layout(name).check(tmp_path).differing) == {"training images", "test images", "classes"}


def test_voc_has_several_labels_and_difficult_objects_do_not_count(tmp_path) -> None:
    voc(tmp_path)
    data = find_layout("voc2007").read(tmp_path)
    assert data.train.labels.shape == (4, 20)
    assert data.train.labels[:, :3].tolist() == [[1, 0, -1], [1, 0, -1], [0, 1, -1], [0, 1, -1]]
    with pytest.raises(ValueError, match="the images of voc2007 have several labels, and knn takes one"):
        evaluate("knn", tiny_vit(), {"voc2007": tmp_path}, progress=False)


def eleven_points(scores: np.ndarray, positive: np.ndarray) -> float:
    """The mean over recalls of 0, .1, ..., 1 of the best precision at no less recall."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    cuts = []
    for end in range(1, len(order) + 1):
        right = sum(bool(positive[i]) for i in order[:end])
        cuts.append((right / positive.sum(), right / end))
    return np.mean([max((p for r, p in cuts if r >= level / 10 - 1e-9), default=0.0) for level in range(11)])


@pytest.mark.slow
def test_fine_s_averages_the_metrics_of_its_datasets(tmp_path) -> None:
    data, backbone = {name: tmp_path / name for name in ("dtd", "pets", "voc2007")}, tiny_vit()
    for name, folder in data.items():
        MAKERS[name](folder)
    settings = {**SMALL, "view.short": 32, "fit.fixed": 1.0}
    result = evaluate("fine-s", backbone, data, tmp_path / "out", settings=settings, progress=False)["fine-s"]
    found = {each.dataset: each for each in result.scores}
    assert found["pets"].metric == "mean per class"
    assert found["voc2007"].metric == "11-point mAP"
    assert result.value() == pytest.approx(np.mean([found[name].value for name in data]))
    assert result.scores[0].metric == "mean of 3"

    own = Preprocess((32, 32), 1.0, mean=backbone.preprocess.mean, std=backbone.preprocess.std)

    def features(images) -> np.ndarray:
        with torch.no_grad():
            return np.stack([backbone(own(images.root / name)[None]).cls[0].double().numpy() for name in images.names])

    for name, folder in data.items():
        read = find_layout(name).read(folder)
        (X, y), (Q, truth) = ((features(part), part.labels) for part in (read.train, read.test))
        if name == "voc2007":
            aps = []
            for column in np.flatnonzero((truth == 1).any(axis=0)):
                model = LogisticRegression(C=1.0, tol=1e-12, max_iter=1000).fit(X, y[:, column] == 1)
                counted = truth[:, column] >= 0
                aps.append(eleven_points(model.decision_function(Q)[counted], truth[counted, column] == 1))
            want = np.mean(aps)
        else:
            right = LogisticRegression(C=1.0, tol=1e-12, max_iter=1000).fit(X, y).predict(Q) == truth
            want = np.mean([right[truth == label].mean() for label in set(truth.tolist())])
        assert found[name].value == pytest.approx(100 * want, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_of_classes_and_eleven_points_follow_their_formulas(seed) -> None:
    random = np.random.default_rng(seed)
    labels, right = random.choice([0, 1, 1, 1, 4], 40), random.random(40) > 0.4
    want = np.mean([right[labels == label].mean() for label in set(labels.tolist())])
    assert mean_per_class(right, labels) == pytest.approx(want, abs=1e-12)
    scores, positive = random.random(30), random.random(30) > 0.6
    assert eleven_point_ap(scores, positive) == pytest.approx(eleven_points(scores, positive), abs=1e-12)
