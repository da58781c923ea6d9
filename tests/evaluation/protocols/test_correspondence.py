"""The four forms of semantic correspondence against their formulas written again."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.evaluation.protocols.small_runs import SLOW, features, pixels, scores, start


def middle(image, side):
    """Return the photo in the middle of a black square, its scale and its offset."""
    scale = side / max(image.size)
    small = image.resize([round(each * scale) for each in image.size], 1)
    square = Image.new("RGB", (side, side))
    offset = ((side - small.width) // 2, (side - small.height) // 2)
    square.paste(small, offset)
    return square, scale, offset


def corner(image, side):
    """Return the photo in the corner of a white square, and its scale."""
    longer = max(image.size)
    square = Image.new("RGB", (longer, longer), "white")
    square.paste(image)
    return square.resize((side, side), 3), side / longer


def pair_pck(backbone, root, record, form, norm=True):
    """Return which keypoints are right, as the evaluation of that name decides."""

    def photo(which):
        return Image.open(root / f"SPair-71k/JPEGImages/{record['category']}/{record[which]}").convert("RGB")

    source, target = photo("src_imname"), photo("trg_imname")
    size = max(record["trg_bndbox"][2] - record["trg_bndbox"][0], record["trg_bndbox"][3] - record["trg_bndbox"][1])

    def maps(image):
        return F.normalize(features(backbone, pixels(image), norm=norm)[0].patches[0], dim=0)

    right = []
    for a, b in zip(record["src_kps"], record["trg_kps"], strict=True):
        if form == "insid3":
            ms, mt = (maps(each.resize((48, 48), 2)) for each in (source, target))
            x, y = (min(max(round(k / side * 6), 0), 5) for k, side in zip(a, source.size, strict=True))
            sim = torch.einsum("d,dhw->hw", ms[:, y, x], mt)
            by, bx = divmod(int(sim.argmax()), 6)
            v, u = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
            w = (sim * torch.exp(-((u - bx) ** 2 + (v - by) ** 2) / 98) / 0.04).flatten().softmax(0).reshape(6, 6)
            found = [float((w * u).sum()) * target.width / 6, float((w * v).sum()) * target.height / 6]
            right.append(math.dist(found, b) <= 0.1 * size)
            continue
        if form == "official":
            ms, mt = maps(source), maps(target)
            sim = torch.einsum("d,dhw->hw", ms[:, a[1] // 8, a[0] // 8], mt)
            by, bx = divmod(int(sim.argmax()), sim.shape[1])
            right.append(math.dist([8 * bx + 4, 8 * by + 4], b) <= 0.1 * size)
            continue
        side = 48
        if form == "geoaware":
            (si, ss, so), (ti, ts, to) = middle(source, side), middle(target, side)
            x, y = (int((k * ss + o) / 8) for k, o in zip(a, so, strict=True))
            ms, mt = maps(si), maps(ti)
            sim = torch.einsum("d,dhw->hw", ms[:, y, x], mt)
            by, bx = divmod(int(sim.argmax()), 6)
            v, u = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
            near = ((u - bx).abs() <= 5) & ((v - by).abs() <= 5)
            w = (sim * near / 0.02).flatten().softmax(0).reshape(6, 6)
            found = [float((w * u).sum()) * 8 + 4, float((w * v).sum()) * 8 + 4]
            truth = [k * ts + o for k, o in zip(b, to, strict=True)]
            right.append(math.dist(found, truth) < 0.1 * size * ts)
        else:
            (si, ss), (ti, ts) = corner(source, side), corner(target, side)
            at = torch.tensor([[int(k * ss) / side * 2 - 1 for k in a]])[None, None]
            described = F.grid_sample(maps(si)[None], at, mode="bilinear", align_corners=True)[0, :, 0, 0]
            sim = torch.einsum("d,dhw->hw", described, maps(ti))
            by, bx = divmod(int(sim.argmax()), 6)
            truth = [int(k * ts) / side for k in b]
            right.append(math.dist([bx / 6, by / 6], truth) / (size / max(target.size)) < 0.1)
    return np.array(right)


@pytest.mark.parametrize(
    ("variant", "setting"),
    [
        ("insid3", "view__size"),
        pytest.param("official", None, marks=SLOW),
        pytest.param("v3", "view__patches", marks=SLOW),
        pytest.param("geoaware", "view__patches", marks=SLOW),
        pytest.param("probe3d", "view__size", marks=SLOW),
    ],
)
def test_correspondence(variant, setting, backbone, tmp_path):
    number = 6 if setting == "view__patches" else 48
    settings = {setting: number} if setting else {}
    results, root = start("correspondence", backbone, tmp_path, variant, metric__alpha=0.1, **settings)
    pairs = [json.loads(f.read_text()) for f in sorted((root / "SPair-71k/PairAnnotation/test").iterdir())]
    norm = results[0].facts.get("final norm", True)
    right = [pair_pck(backbone, root, pair, variant, norm) for pair in pairs]
    by_pair = 100 * np.mean([each.mean() for each in right])
    by_point = 100 * np.concatenate(right).mean()
    categories = [[r for r, p in zip(right, pairs, strict=True) if p["category"] == c] for c in ("cat", "dog")]
    by_category = 100 * np.mean([np.concatenate(each).mean() for each in categories])
    if variant == "v3":  # the better one counts
        other = [pair_pck(backbone, root, pair, variant, not norm) for pair in pairs]
        categories = [[r for r, p in zip(other, pairs, strict=True) if p["category"] == c] for c in ("cat", "dog")]
        assert by_category >= 100 * np.mean([np.concatenate(each).mean() for each in categories])
    for name, value in (("pair", by_pair), ("point", by_point), ("category", by_category)):
        assert scores(results, f"PCK@0.1 per {name}") == pytest.approx(value, abs=1e-6)
