"""Anomaly detection against its formula written again."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from tests.evaluation.protocols.small_runs import features, pixels, scores, start
from vitbackbone.evaluation.metrics.regions import pro


def test_anomalies(backbone, tmp_path):
    from scipy.ndimage import gaussian_filter

    settings = {"view__short": 32, "fit__seeds": "1", "fit__rotations": 1, "metric__top": 0.2}
    results, root = start("anomaly", backbone, tmp_path, None, **settings)
    images, points, regions = [], [], []
    for category in ("bottle", "screw"):

        def patches(path):
            image = Image.open(path).convert("RGB")
            small = image.resize((int(32 * image.width / image.height), 32), 3)
            whole = pixels(small)[..., : small.width // 8 * 8]
            return F.normalize(features(backbone, whole)[0].patches[0], dim=0)

        bank = patches(root / category / "train/good/001.png").flatten(1).T
        scores_, truth, maps, masks = [], [], [], []
        for path in sorted((root / category / "test").glob("*/*.png")):
            seen = patches(path)
            far = np.array([[min(1 - float(p @ b) for b in bank) for p in row] for row in seen.permute(1, 2, 0)])
            if category == "screw":
                far = np.zeros_like(far)  # no patch of these is above the mask's threshold, and none below it
            count = int(0.2 * far.size)
            scores_.append(np.mean(sorted(far.ravel())[-count:]))
            defect = path.parent.name != "good"
            truth.append(defect)
            large = F.interpolate(torch.from_numpy(far)[None, None], (40, 56), mode="bilinear")[0, 0].numpy()
            maps.append(gaussian_filter(large, sigma=4))
            name = root / category / f"ground_truth/hole/{path.stem}_mask.png"
            masks.append(np.asarray(Image.open(name)) > 0 if defect else np.zeros((40, 56), bool))
        images.append(roc_auc_score(truth, scores_))
        points.append(roc_auc_score(np.ravel(masks), np.ravel(maps)))
        regions.append(pro(maps, masks))
    assert scores(results, "image AUROC") == pytest.approx(100 * np.mean(images), abs=1e-3)
    assert scores(results, "pixel AUROC") == pytest.approx(100 * np.mean(points), abs=1e-3)
    assert scores(results, "PRO") == pytest.approx(100 * np.mean(regions), abs=1e-3)
