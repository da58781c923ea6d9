"""Monocular depth against its formula written again."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from heads import load_head
from tests.evaluation.protocols.small_runs import features, pixels, scores, start

DEPTHS = {  # stored values of a metre, shape, crop, mask, range
    "nyu": (1000, (48, 64), (48, 64), (45 / 480, 471 / 480, 41 / 640, 601 / 640), 10),
    "kitti": (256, (48, 80), (32, 64), (0.40810811, 0.99189189, 0.03594771, 0.96405229), 80),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_depth_is_measured_photo_by_photo(name, backbone, tmp_path):
    scale, shape, (height, width), (top, bottom, left, right), most = DEPTHS[name]
    settings = {"fit__steps": 3, "fit__warmup": 1, "fit__batch_size": 2, "fit__crop": "32,40", "fit__bins": 8}
    settings |= {"view__crop": f"{height},{width}"} if name == "kitti" else {}
    results, root = start(f"depth-{name}", backbone, tmp_path, "v2-lin4", **settings)
    head = load_head(tmp_path / "out" / next(iter(results[0].heads.values())), backbone)
    errors = []
    for i in range(3):
        files = ("room_test/rgb_{}.jpg", "room_test/depth_{}.png")
        files = files if name == "nyu" else ("input/drive_test/{}.png", "gt_depth/drive_test/{}.png")
        photo, stored = (np.asarray(Image.open(root / each.format(i))) for each in files)
        first = (shape[1] - width) // 2
        photo, stored = (each[shape[0] - height :, first : first + width] for each in (photo, stored))
        image, truth = pixels(Image.fromarray(photo)), stored / scale
        with torch.no_grad():
            both = [
                F.interpolate(
                    head.maps(*features(backbone, x, head.layers, norm=False)), (height, width), mode="bilinear"
                )
                for x in (image, image.flip(3))
            ]
        depth = ((both[0] + both[1].flip(3)) / 2).clamp(0.001, most)[0, 0].numpy()
        known = np.zeros((height, width), bool)
        known[int(top * height) : int(bottom * height), int(left * width) : int(right * width)] = True
        known &= (truth > 0.001) & (truth < most)
        errors.append(np.sqrt(np.mean((depth[known] - truth[known]) ** 2)))
    assert scores(results, "RMSE") == pytest.approx(np.mean(errors), abs=1e-5)
