"""The small datasets, made in the layouts that they are distributed in."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torchmetrics.classification import BinaryPrecisionRecallCurve, MulticlassAccuracy

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


@pytest.mark.parametrize("name", sorted({*MAKERS} - {"caltech101"}))
def test_a_damaged_list_is_a_sentence_and_a_missing_image_is_counted(name, tmp_path) -> None:
    MAKERS[name](tmp_path)
    layout = find_layout(name)
    next(iter(tmp_path.rglob("*.jpg"))).unlink()
    counts = layout.check(tmp_path).counts
    assert counts["training images"] + counts["test images"] == 5
    for file in sorted(each for each in tmp_path.rglob("*") if each.is_file() and each.suffix != ".jpg"):
        good = file.read_bytes()
        for bad in (
            b"",
            good[: len(good) // 2],
            b"../../../etc/passwd 9\n",
            b"\xff\x00 garbage",
            good.replace(b"1", b"77"),
        ):
            file.write_bytes(bad)
            try:
                layout.load(tmp_path)
            except LayoutError as error:  # any other error fails
                assert str(tmp_path) in str(error)  # noqa: PT017
        file.write_bytes(good)


def test_voc_has_several_labels_and_difficult_objects_do_not_count(tmp_path) -> None:
    voc(tmp_path)
    data = find_layout("voc2007").read(tmp_path)
    assert data.train.labels.shape == (4, 20)
    assert data.train.labels[:, :3].tolist() == [[1, 0, -1], [1, 0, -1], [0, 1, -1], [0, 1, -1]]
    with pytest.raises(ValueError, match="the images of voc2007 have several labels, and knn takes one"):
        evaluate("knn", tiny_vit(), {"voc2007": tmp_path}, progress=False)


def eleven_points(scores: np.ndarray, positive: np.ndarray) -> float:
    """The mean over recalls of 0, .1, ..., 1 of the best precision at no less recall, as DINOv3's code takes it from
    the curve of torchmetrics."""
    ranks = torch.from_numpy(np.unique(scores, return_inverse=True)[1] / len(scores))  # in [0, 1], no logits
    curve = BinaryPrecisionRecallCurve()
    curve.update(ranks, torch.from_numpy(positive.astype(int)))
    precision, recall, _ = curve.compute()
    return np.mean([precision[recall >= level].max().item() for level in torch.linspace(0, 1, 11)])


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
    labels, predicted = random.choice([0, 1, 1, 1, 4], 40), random.choice([0, 1, 2, 4], 40)  # 2 has no image
    macro = MulticlassAccuracy(num_classes=6, average="macro")(*map(torch.from_numpy, (predicted, labels)))
    assert mean_per_class(predicted, labels) == pytest.approx(float(macro), abs=1e-6)
    scores, positive = random.integers(0, 20, 30) / 20, random.random(30) > 0.6  # some scores are equal
    assert eleven_point_ap(scores, positive) == pytest.approx(eleven_points(scores, positive), abs=1e-6)
