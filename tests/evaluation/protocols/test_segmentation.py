"""Semantic segmentation against its formula written again."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from heads import load_head
from tests.evaluation.protocols.small_runs import SLOW, features, pixels, scores, start


@pytest.mark.parametrize(("variant", "scales"), [("v3", (1,)), pytest.param("v2-ms", (1, 1.5), marks=SLOW)])
def test_segmentation_is_measured_at_the_size_of_the_labels(variant, scales, backbone, tmp_path):
    settings = {
        "view__scales": ",".join(map(str, scales)),
        "view__short": 32,
        "view__window": 24,
        "view__stride": 16,
        "fit__steps": 3,
        "fit__batch_size": 2,
    }
    settings |= {"fit__short": 32, "fit__crop": 32, "view__flip": True}
    results, root = start("segmentation", backbone, tmp_path, variant, fit__validate_every=0, **settings)
    head = load_head(tmp_path / "out" / next(iter(results[0].heads.values())), backbone)

    @torch.no_grad()
    def logits(image):
        return F.interpolate(head.maps(*features(backbone, image, head.layers)), image.shape[2:], mode="bilinear")

    right, either = np.zeros(150), np.zeros(150)
    for i in range(3):
        base = root / "ADEChallengeData2016"
        image = Image.open(base / f"images/validation/{i:03}.jpg")
        truth = np.asarray(Image.open(base / f"annotations/validation/{i:03}.png")).astype(int) - 1
        total = 0
        for scale, mirrored in itertools.product(scales, (False, True)):
            short = int(32 * scale)
            x = pixels(image.resize((int(short * 56 / 40 + 0.5), short), 2))
            x = x.flip(3) if mirrored else x
            votes, count = torch.zeros(150, *x.shape[2:]), torch.zeros(x.shape[2:])
            tops, lefts = ([*range(0, side - 24, 16), side - 24] for side in x.shape[2:])
            for top, left in itertools.product(tops, lefts):
                inside = np.s_[..., top : top + 24, left : left + 24]
                votes[inside] += logits(x[inside])[0]
                count[inside] += 1
            large = F.interpolate((votes / count)[None], (40, 56), mode="bilinear")[0]
            total = total + (large.flip(2) if mirrored else large).softmax(0)
        predicted = total.argmax(0).numpy()
        for k in range(150):
            known = truth >= 0
            right[k] += ((predicted == k) & (truth == k) & known).sum()
            either[k] += (((predicted == k) | (truth == k)) & known).sum()
    want = np.mean(right[either > 0] / either[either > 0])
    assert scores(results, "mIoU") == pytest.approx(100 * want, abs=1e-6)
