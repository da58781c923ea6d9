"""Retrieval of landmarks against its formula written again."""

import math

import numpy as np
import pytest
from PIL import Image
from torch.nn import functional as F

from tests.evaluation.protocols.small_runs import SLOW, cosine, features, pixels, scores, start, trapezoids


@pytest.mark.parametrize("variant", ["v3", pytest.param("v1-paris", marks=SLOW)])
def test_retrieval(variant, backbone, tmp_path):
    results, root = start("retrieval", backbone, tmp_path, variant, view__size=40)

    def vector(name):
        image = Image.open(root / f"roxford5k/jpg/{name}.jpg").convert("RGB")
        if variant == "v3":
            scale = 40 / max(image.size)
            small = image.resize([int(side * scale) if side < max(image.size) else 40 for side in image.size], 3)
            square = Image.new("RGB", (40, 40))
            square.paste(small, ((40 - small.width) // 2, (40 - small.height) // 2))
            return features(backbone, pixels(square))[0].cls[0]
        image.thumbnail((40, 40), Image.Resampling.LANCZOS)
        whole = pixels(image)
        whole = whole[..., : whole.shape[2] // 8 * 8, : whole.shape[3] // 8 * 8]
        total = 0
        for scale in (1, 1 / math.sqrt(2), 0.5):
            small = F.interpolate(whole, scale_factor=scale, mode="bilinear") if scale != 1 else whole
            small = small[..., : small.shape[2] // 8 * 8, : small.shape[3] // 8 * 8]
            total = total + features(backbone, small)[0].cls[0]
        return total

    database = [vector(f"all_souls_{i:06}") for i in range(6)]
    for difficulty in ("easy", "medium", "hard"):
        aps = []
        for i in range(3):
            query = vector(f"query_{i}")
            order = sorted(range(6), key=lambda j: -cosine(query, database[j]))
            easy, hard, junk = ([i + 1], [i + 2, i + 3], [0]) if i < 2 else ([], [], [1])
            ok = {"easy": easy, "medium": easy + hard, "hard": hard}[difficulty]
            if ok:
                aps.append(trapezoids(order, ok, junk + {"easy": hard, "medium": [], "hard": easy}[difficulty]))
        assert scores(results, f"mAP {difficulty}") == pytest.approx(100 * np.mean(aps), abs=1e-4)
