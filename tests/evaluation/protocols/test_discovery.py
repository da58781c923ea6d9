"""Object discovery against its formula written again."""

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.protocols.small_runs import features, pixels, scores, start


def test_discovery_counts_photos_whose_box_meets_an_object(backbone, tmp_path):
    from vitbackbone.evaluation.datasets.boxes import read_voc07

    results, root = start("discovery", backbone, tmp_path, "v3", metric__iou=0.3)
    found = 0
    data = read_voc07(root)
    assert data.boxes[0].tolist() == [[0, 0, 40, 30]]
    assert [len(each) for each in data.boxes] == [1, 2, 3]
    best = 0
    for tau in np.arange(9) * 0.05:
        found = 0
        for i in range(3):
            image = Image.open(root / f"VOCdevkit/VOC2007/JPEGImages/{i:06}.jpg")
            maps = features(backbone, pixels(image))[0].patches[0]
            from vitbackbone.evaluation.methods.discovery import tokencut

            mask = tokencut(maps, float(round(tau, 2)), 1e-5)
            rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
            x0, y0, x1, y1 = columns[0] * 8, rows[0] * 8, min(columns[-1] * 8 + 8, 56), min(rows[-1] * 8 + 8, 40)
            inter = max(min(x1, 40) - x0, 0) * max(min(y1, 30) - y0, 0)
            found += inter / ((x1 - x0) * (y1 - y0) + 1200 - inter) >= 0.3
        best = max(best, found)
    assert scores(results, "CorLoc") == pytest.approx(100 * best / 3)
