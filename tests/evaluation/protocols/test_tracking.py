"""Video object segmentation against its formula written again."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.evaluation.protocols.small_runs import SLOW, features, pixels, scores, start
from vitbackbone.evaluation.metrics.masks import contour_f


@pytest.mark.parametrize("variant", ["v3", pytest.param("v1", marks=SLOW)])
def test_tracking(variant, backbone, tmp_path):
    settings = {"view__short": 48, "view__per_patch": False, "fit__radius": 2, "fit__context": 2}
    if variant == "v1":
        settings["view__multiple"] = 16
    results, root = start("tracking", backbone, tmp_path, variant, **settings)
    js, fs = [], []
    for name in ("bear0", "bear1"):
        frames = [Image.open(root / f"JPEGImages/480p/{name}/{i:05}.jpg").convert("RGB") for i in range(4)]
        masks = [np.asarray(Image.open(root / f"Annotations/480p/{name}/{i:05}.png")) for i in range(4)]
        grid = (6, 9) if variant == "v3" else (6, 8)
        size = (grid[1] * 8, grid[0] * 8)

        def show(frame, size=size):
            if variant == "v3":
                return pixels(frame.resize(size, 3))
            raw = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float()
            small = F.interpolate(raw, size[::-1], mode="bilinear")[0].round().byte().permute(1, 2, 0).numpy()
            return pixels(Image.fromarray(small), np.array([0.228, 0.224, 0.225]))

        maps = [F.normalize(features(backbone, show(f))[0].patches[0], dim=0) for f in frames]
        first = np.asarray(Image.fromarray(masks[0]).resize(grid[::-1], 0))
        labels = [F.one_hot(torch.from_numpy(first.copy()).long(), 3).permute(2, 0, 1).float()]
        temperature = 0.2 if variant == "v3" else 0.1
        for i in range(1, 4):
            context = [0, *range(max(1, i - 2), i)]
            new = torch.zeros(3, *grid)
            for y, x in itertools.product(*map(range, grid)):
                near = [
                    (float(maps[i][:, y, x] @ maps[t][:, v, u]), t, v, u)
                    for t in context
                    for v, u in itertools.product(*map(range, grid))
                    if (math.hypot(v - y, u - x) <= 2 if variant == "v3" else max(abs(v - y), abs(u - x)) <= 2)
                ]
                best = sorted(near, reverse=True)[:5]
                weights = torch.tensor([s for s, *_ in best]).div(temperature).softmax(0)
                for w, (_, t, v, u) in zip(weights, best, strict=True):
                    new[:, y, x] += w * labels[t][:, v, u]
            labels.append(new)
        found = []
        for soft in labels[1:3]:
            large = F.interpolate(soft[None], (64, 96) if variant == "v3" else size[::-1], mode="bilinear")[0]
            low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
            classes = ((large - low) / (high - low)).nan_to_num(0).argmax(0).byte().numpy()
            found.append(np.asarray(Image.fromarray(classes).resize((96, 64), 0)))
        for k in (1, 2):
            pairs = [(f == k, m == k) for f, m in zip(found, masks[1:3], strict=True)]
            js.append(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs]))
            fs.append(np.mean([contour_f(a, b) for a, b in pairs]))
    assert scores(results, "J") == pytest.approx(100 * np.mean(js), abs=1e-6)
    assert scores(results, "F") == pytest.approx(100 * np.mean(fs), abs=1e-6)
    assert scores(results, "J&F") == pytest.approx(50 * (np.mean(js) + np.mean(fs)), abs=1e-6)
