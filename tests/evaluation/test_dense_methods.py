"""The steps of dense protocols and retrieval, against their formulas written again."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import label
from torch.nn import functional as F
from torchvision.transforms import v2 as transforms

from tests.helpers import photo, tiny_vit
from vitbackbone.evaluation.methods import depth_losses, memory_bank
from vitbackbone.evaluation.methods.dense_augmentation import (
    Colours,
    Crops,
    DepthViews,
    distort,
    random_crop,
    random_depth_view,
)
from vitbackbone.evaluation.methods.dense_training import rows_of
from vitbackbone.evaluation.methods.discovery import box_of, lost, tokencut
from vitbackbone.evaluation.methods.inputs import (
    centre_crop,
    centre_pad,
    long_side,
    pixels_of,
    resize,
    resize_aliased,
    short_side,
)
from vitbackbone.evaluation.methods.keys import key_map
from vitbackbone.evaluation.methods.matching import match, read_at
from vitbackbone.evaluation.methods.propagation import one_hot, propagate, stretched
from vitbackbone.evaluation.methods.schedules import Schedule
from vitbackbone.evaluation.methods.whitening import fit_whitening
from vitbackbone.evaluation.methods.windows import slide, starts


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- inputs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(40, 61), (61, 40), (33, 33)])
def test_sizes_equal_torchvisions(height, width):
    picture = photo(height, width)
    assert short_side((height, width), 24) == transforms.Resize(24)(picture).size[::-1]
    want = transforms.CenterCrop(44)(picture)
    assert np.array_equal(np.asarray(centre_crop(picture, (44, 44))), np.asarray(want))
    assert max(long_side((height, width), 24)) == 24


def test_opencvs_resize_takes_four_pixels():
    picture = photo(30, 47)
    found = np.asarray(resize_aliased(picture, (21, 20)), dtype=float)
    pixels = np.asarray(picture, dtype=float)
    for y, x in ((0, 0), (10, 7), (20, 19)):
        v, u = (y + 0.5) * 30 / 21 - 0.5, (x + 0.5) * 47 / 20 - 0.5
        v, u = max(v, 0), max(u, 0)
        top, left = int(v), int(u)
        a, b = v - top, u - left
        low, right = min(top + 1, 29), min(left + 1, 46)
        want = (1 - a) * ((1 - b) * pixels[top, left] + b * pixels[top, right])
        want += a * ((1 - b) * pixels[low, left] + b * pixels[low, right])
        assert np.abs(found[y, x] - want).max() <= 0.5 + 1e-4


def test_padding_is_on_both_sides_with_the_odd_row_below():
    padded = centre_pad(torch.ones(1, 1, 11, 14), 14)
    assert padded.shape == (1, 1, 14, 14)
    assert padded[0, 0, :, 0].tolist() == [0.0] + [1.0] * 11 + [0.0] * 2


# ---- windows -------------------------------------------------------------------------------------------------------


def test_windows_start_where_the_authors_have_them():
    assert starts(683, 512, 341) == [0, 171]
    assert starts(1024, 512, 341) == [0, 341, 512]
    assert starts(512, 512, 341) == [0]
    assert starts(300, 512, 341) == [0]


@pytest.mark.parametrize("size", [(20, 33), (12, 40), (9, 10)])
def test_windows_average_their_scores(size):
    image, side, stride = noise(3, *size), 12, 8
    found = slide(image, lambda part: part * part.mean(), side, stride)
    side = min(size) if max(size) < side else side
    total, count = torch.zeros(3, *size), torch.zeros(size)
    for top in starts(size[0], side, stride):
        for left in starts(size[1], side, stride):
            inside = np.s_[..., top : top + side, left : left + side]
            total[inside] += image[inside] * image[inside].mean()
            count[inside] += 1
    assert torch.allclose(found, total / count, atol=1e-6)


# ---- propagation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["square", "circle"])
def test_labels_are_the_mean_of_the_nearest_patches(shape):
    current = F.normalize(noise(5, 6, 7), dim=0)
    context = F.normalize(noise(3, 5, 6, 7, seed=1), dim=1)
    labels = noise(3, 2, 6, 7, seed=2).softmax(dim=1)
    found = propagate(current, context, labels, 2, shape, 4, 0.1)
    for y in range(6):
        for x in range(7):
            near = []
            for t in range(3):
                for v in range(6):
                    for u in range(7):
                        away = max(abs(v - y), abs(u - x)) if shape == "square" else math.hypot(v - y, u - x)
                        if away <= 2:
                            near.append((float(current[:, y, x] @ context[t, :, v, u]), labels[t, :, v, u]))
            near = sorted(near, key=lambda each: -each[0])[:4]
            weights = np.exp([s / 0.1 for s, _ in near])
            want = sum(w * each for w, (_, each) in zip(weights, near, strict=True)) / weights.sum()
            assert torch.allclose(found[:, y, x], want.float(), atol=1e-5)


def test_identical_frames_copy_the_labels():
    frame = F.normalize(noise(16, 5, 6), dim=0)
    labels = one_hot(torch.randint(0, 3, (5, 6), generator=torch.Generator().manual_seed(3)), 2)
    assert torch.equal(propagate(frame, frame[None], labels[None], 2, "square", 1, 0.1), labels)


def test_scores_are_stretched_to_the_same_range():
    labels = noise(3, 4, 5)
    labels[1] = 0
    low, high = labels[0].min(), labels[0].max()
    for guarded in (True, False):
        assert torch.allclose(stretched(labels, guarded)[0], (labels[0] - low) / (high - low))
        assert (stretched(labels, guarded)[1] == 0).all()


# ---- matching ------------------------------------------------------------------------------------------------------


def test_features_are_read_as_each_evaluation_does():
    features = noise(4, 6, 8)
    points = torch.tensor([[0.0, 0.0], [0.31, 0.77], [0.999, 0.999]])
    inside, nearest, bilinear = (read_at(features, points, read) for read in ("inside", "nearest", "bilinear"))
    for i, (x, y) in enumerate(points.tolist()):
        assert torch.equal(inside[i], features[:, int(y * 6), int(x * 8)])
        assert torch.equal(nearest[i], features[:, min(round(y * 6), 5), min(round(x * 8), 7)])
        v, u = y * 5, x * 7
        top, left = int(v), int(u)
        a, b = v - top, u - left
        low, right = min(top + 1, 5), min(left + 1, 7)
        want = (1 - a) * ((1 - b) * features[:, top, left] + b * features[:, top, right])
        want = want + a * ((1 - b) * features[:, low, left] + b * features[:, low, right])
        assert torch.allclose(bilinear[i], want, atol=1e-5)


@pytest.mark.parametrize("how", ["argmax", "window", "kernel"])
def test_matches_are_found_as_each_evaluation_does(how):
    features, described = F.normalize(noise(4, 6, 8), dim=0), F.normalize(noise(3, 4, seed=1), dim=1)
    found = match(described, features, how, sigma=1.5, window=2, temperature=0.05)
    for i in range(3):
        similarity = {(x, y): float(described[i] @ features[:, y, x]) for y in range(6) for x in range(8)}
        bx, by = max(similarity, key=similarity.get)
        if how == "argmax":
            assert found[i].tolist() == [bx, by]
            continue
        for (x, y), s in similarity.items():
            far = math.exp(-((x - bx) ** 2 + (y - by) ** 2) / (2 * 1.5**2))
            similarity[x, y] = s * (far if how == "kernel" else max(abs(x - bx), abs(y - by)) <= 2) / 0.05
        total = sum(math.exp(s) for s in similarity.values())
        want = [sum(math.exp(s) * place[axis] for place, s in similarity.items()) / total for axis in (0, 1)]
        assert found[i].tolist() == pytest.approx(want, abs=1e-4)


# ---- objects -------------------------------------------------------------------------------------------------------


def planted(d=8, grid=(9, 12)):
    """A rectangle of patches unlike the others."""
    features = torch.zeros(d, *grid)
    features[0], features[0, 2:6, 3:8], features[1, 2:6, 3:8] = 1, -0.3, 1
    return features + 0.05 * noise(d, *grid)


def test_tokencut_finds_a_planted_rectangle():
    mask = tokencut(planted(), 0.2, 1e-5)
    assert mask.sum() == 20
    assert box_of(mask, 16, (144, 192)).tolist() == [48, 32, 128, 96]
    assert box_of(mask, 16, (90, 120)).tolist() == [48, 32, 120, 90]  # what is padding is cut off


def test_lost_finds_a_planted_rectangle():
    mask = lost(planted(), 20)
    assert box_of(mask, 16, (144, 192)).tolist() == [48, 32, 128, 96]


def test_tokencut_and_lost_follow_their_formulas():
    features = noise(6, 5, 6)
    tokens = features.flatten(1).T
    cosine = F.normalize(tokens, dim=1) @ F.normalize(tokens, dim=1).T
    edges = np.where(cosine.numpy() > 0.1, 1.0, 1e-5)
    degree = edges.sum(axis=1)
    scaled = edges / np.sqrt(np.outer(degree, degree))
    values, basis = np.linalg.eigh(scaled)  # the largest ones of the scaled edges are the smallest of the cut
    vector = basis[:, np.argsort(values)[-2]] / np.sqrt(degree)
    seed = int(np.argmax(np.abs(vector)))
    side = (vector > vector.mean()) == (vector[seed] > vector.mean())
    parts, _ = label(side.reshape(5, 6))
    assert np.array_equal(tokencut(features, 0.1, 1e-5), parts == parts.reshape(-1)[seed])

    products = (tokens @ tokens.T).numpy()
    degrees = [(np.delete(row, i) > 0).sum() for i, row in enumerate(products)]
    order = np.argsort(degrees, kind="stable")
    votes = sum(products[i] for i in order[:7] if products[order[0], i] > 0)
    ties = degrees.count(degrees[order[6]]) + degrees.count(degrees[order[0]])
    if ties == 2:
        parts, _ = label((votes > 0).reshape(5, 6))
        assert np.array_equal(lost(features, 7), parts == parts.reshape(-1)[order[0]])


@pytest.mark.parametrize("fields", [{}, {"num_registers": 3}, {"qkv_bias": "qv"}])
def test_keys_are_those_of_the_last_attention(fields):
    backbone, image = tiny_vit(**fields), noise(3, 24, 36)
    seen = []
    hook = backbone.blocks[-1].norm1.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        keys = key_map(backbone, image)
        hook.remove()
        qkv = backbone.blocks[-1].attn.qkv(seen[0])
    assert keys.shape == (16, 3, 5)
    assert torch.allclose(keys.flatten(1).T, qkv[0, -15:, 16:32], atol=1e-6)


# ---- anomalies -----------------------------------------------------------------------------------------------------


def test_photos_are_turned_against_the_clock():
    picture = np.asarray(photo(9, 9))
    turned = memory_bank.rotations(picture, 4)
    assert len(turned) == 4
    assert np.array_equal(turned[0], picture)
    # The centre is a corner of pixels, as OpenCV has it, so a turned copy is a pixel off.
    assert np.array_equal(turned[1][1:, :], np.rot90(picture, 1)[:-1])
    assert np.array_equal(turned[2][1:, 1:], np.rot90(picture, 2)[:-1, :-1])
    assert len(memory_bank.rotations(picture, 8)) == 8


def test_distances_and_scores_follow_their_formulas():
    patches, bank = F.normalize(noise(50, 6), dim=1), F.normalize(noise(30, 6, seed=1), dim=1)
    far = memory_bank.distances(patches, bank)
    want = [min(1 - float(a @ b) for b in bank) for a in patches]
    assert far.tolist() == pytest.approx(want, abs=1e-5)
    assert ((patches[:, None] - bank) ** 2).sum(dim=2).amin(dim=1).div(2).tolist() == pytest.approx(want, abs=1e-5)
    values = far.numpy()
    assert memory_bank.image_score(values, 0.01) == pytest.approx(max(want), abs=1e-5)
    assert memory_bank.image_score(values, 0.11) == pytest.approx(np.mean(sorted(want)[-5:]), abs=1e-5)


def test_the_foreground_is_turned_to_the_side_of_the_centre():
    grid = (14, 14)
    scene = np.zeros((*grid, 4), dtype=np.float32)
    scene[4:10, 4:10, 0] = 30
    tokens = scene.reshape(196, 4) + np.random.default_rng(0).normal(0, 0.1, (196, 4)).astype(np.float32)
    for sign in (1, -1):
        mask = memory_bank.foreground(sign * tokens, grid, 10.0, 0.2, 0.35).reshape(grid)
        assert mask[4:10, 3:11].all()  # dilated by a patch along the rows
        assert mask.sum() == 48


# ---- whitening -----------------------------------------------------------------------------------------------------


def test_whitening_takes_the_mean_off_but_learns_from_what_is_not_centred():
    features = np.random.default_rng(0).normal(1, 1, (60, 5)) @ np.random.default_rng(1).normal(size=(5, 5))
    whiten = fit_whitening(features)
    assert np.allclose(whiten.mean, features.mean(axis=0))
    raw = features @ whiten.matrix.T
    assert np.allclose(raw.T @ raw / 60, np.eye(5), atol=1e-6)
    assert np.allclose(whiten(features), raw - raw.mean(axis=0))


# ---- training ------------------------------------------------------------------------------------------------------


def test_schedules_follow_the_authors():
    poly, cosine = (Schedule(shape, 40_000, 1_500) for shape in ("poly", "cosine"))
    assert poly.factor(0) == pytest.approx(1e-6)
    assert poly.factor(750) == pytest.approx((1 - 750 / 40_000) * (1 - 0.5 * (1 - 1e-6)))
    assert poly.factor(20_000) == pytest.approx(0.5)
    assert cosine.factor(0) == cosine.factor(1) == poly.factor(0)  # the authors' schedule stands still for a step
    assert cosine.factor(751) == poly.factor(750)
    assert cosine.factor(20_000) == pytest.approx(0.5)
    assert cosine.factor(39_999) == pytest.approx((1 + math.cos(math.pi * 39_999 / 40_000)) / 2, abs=1e-12)
    cycle = Schedule("one-cycle", 38_400, 12_800)
    assert cycle.factor(0) == pytest.approx(1e-3)
    assert cycle.factor(6_400) == pytest.approx(1e-3 + (1 + math.cos(math.pi / 6)) / 2 / 2)
    assert cycle.factor(19_199) == pytest.approx(0.5 * (1 + 1 / 25_000))
    assert (cycle.beta1(100), cycle.beta1(12_800), cycle.beta1(38_400)) == (0.0, pytest.approx(0.85), 0.95)


def test_every_photo_is_seen_once_in_each_pass():
    seen = [row for step in range(5) for row in rows_of(step, 10, 4, seed=1)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_crops_keep_photo_and_labels_together():
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    picture[:, :, 0] = np.arange(60) * 4
    labels = (picture[:, :, 0] > 120).astype(np.uint8)
    crops = Crops(40, (1.0, 1.0), 32, 0.75, 10, 0.5)
    shares = []
    for seed in range(12):
        pixels, target = random_crop(Image.fromarray(picture), labels, crops, 255, np.random.default_rng(seed))
        assert pixels.shape == (3, 32, 32)
        assert torch.equal(target.bool(), pixels[0] > 120)
        shares.append(target.float().mean().item())
    assert sum(0.25 < share < 0.75 for share in shares) >= 11  # no class has more than three quarters


def test_colours_change_within_their_ranges():
    pixels = pixels_of(photo(16, 16))
    none = Colours(0.0, (1.0, 1.0), (1.0, 1.0), 0.0)
    assert (distort(pixels, none, np.random.default_rng(3)).int() - pixels.int()).abs().max() <= 2
    wide = Colours(32.0, (0.5, 1.5), (0.5, 1.5), 0.5)
    several = [distort(pixels, wide, np.random.default_rng(seed)) for seed in range(6)]
    assert len({each.float().mean().item() for each in several}) > 3
    assert torch.equal(several[0], distort(pixels, wide, np.random.default_rng(0)))


def test_depth_views_keep_photo_and_depth_together():
    levels = torch.arange(50).repeat(40, 1).byte()
    views = DepthViews(0.0, 0.5, (32, 40), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0))
    for seed in range(6):
        pixels, depth = random_depth_view(levels.expand(3, -1, -1), levels.float(), views, np.random.default_rng(seed))
        assert pixels.shape == (3, 32, 40)
        assert torch.allclose(pixels[0] * 255, depth, atol=1e-3)


def test_depth_losses_follow_their_formulas():
    depth, target = noise(2, 1, 14, 16).abs() + 0.1, noise(2, 1, 14, 16, seed=1).abs() + 0.1
    known = noise(2, 1, 14, 16, seed=2) > -1
    total = 0.0
    for s in (1, 2, 4, 6):
        p, t, m = (each[..., ::s, ::s].double() for each in (depth, target, known))
        e = torch.log(p + 0.001) - torch.log(t + 0.001)
        rows = ((e * m)[..., :-2, :] - (e * m)[..., 2:, :]).abs() * m[..., :-2, :] * m[..., 2:, :]
        columns = ((e * m)[..., :-2] - (e * m)[..., 2:]).abs() * m[..., :-2] * m[..., 2:]
        total += float((rows.sum() + columns.sum()) / m.sum())
    assert depth_losses.gradient_loss(depth, target, known).item() == pytest.approx(total, rel=1e-5)
    g = (torch.log(depth[known] + 0.001) - torch.log(target[known] + 0.001)).mean().item()
    assert depth_losses.first_loss(depth, target, known, 0.15).item() == pytest.approx(math.sqrt(0.15) * abs(g))


def test_nearest_resizing_takes_the_pixel_at_the_centre():
    labels = np.arange(24 * 36, dtype=np.uint32).reshape(24, 36) % 251
    small = np.asarray(resize(Image.fromarray(labels.astype(np.uint8)), (4, 6), "nearest"))
    assert np.array_equal(small, labels[3::6, 3::6])
