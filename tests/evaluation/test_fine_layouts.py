"""The small datasets, made in the layouts that they are distributed in."""

import numpy as np
import pytest

from tests.evaluation.classified import SMALL
from tests.evaluation.fine_data import FITTED, MAKERS, TESTED, voc
from tests.helpers import tiny_vit
from vitbackbone import evaluate
from vitbackbone.evaluation import LayoutError, find_layout
from vitbackbone.evaluation.metrics.accuracy import eleven_point_ap


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


@pytest.mark.slow
def test_fine_s_averages_the_metrics_of_its_datasets(tmp_path) -> None:
    for name in ("dtd", "pets", "voc2007"):
        MAKERS[name](tmp_path / name)
    settings = {**SMALL, "view.short": 32, "fit.fixed": 1.0}
    data = {name: tmp_path / name for name in ("dtd", "pets", "voc2007")}
    result = evaluate("fine-s", tiny_vit(), data, tmp_path / "out", settings=settings, progress=False)["fine-s"]
    found = {each.dataset: each for each in result.scores}
    assert found["pets"].metric == "mean per class"
    assert found["voc2007"].metric == "11-point mAP"
    assert result.value() == pytest.approx(np.mean([found[name].value for name in data]))
    assert result.scores[0].metric == "mean of 3"
    assert eleven_point_ap(np.array([1.0, 0.0]), np.array([True, False])) == 1
