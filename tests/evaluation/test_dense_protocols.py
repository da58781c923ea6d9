"""Dense protocols and retrieval on tiny datasets, with random weights, against their formulas written again."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from heads import load_head
from tests.evaluation import dense_data
from tests.helpers import tiny_vit
from vitbackbone.evaluation import evaluate, figures, find_protocol, variants
from vitbackbone.evaluation.metrics.masks import contour_f
from vitbackbone.evaluation.metrics.regions import pro

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
STRIDE = 8


@pytest.fixture(scope="module")
def backbone():
    return tiny_vit(depth=4)


def pixels(image: Image.Image, std=STD) -> torch.Tensor:
    array = (np.asarray(image.convert("RGB"), dtype=np.float64) / 255 - MEAN) / std
    return torch.from_numpy(array).permute(2, 0, 1)[None].float()


@torch.no_grad()
def features(backbone, images, layers=(-1,), norm=True):
    return backbone.forward_layers(images, list(layers), norm)


def scores(results, name=None):
    found = {each.metric: each.value for each in results[0].scores}
    return found if name is None else found[name]


def start(protocol, backbone, tmp_path, variant=None, **settings):
    """Make the protocol's dataset and run it."""
    dataset = find_protocol(protocol, variant).datasets[0]
    maker = getattr(dense_data, dataset.replace("-", "_"))
    folder = maker(tmp_path / dataset)
    named = {key.replace("__", "."): value for key, value in settings.items()}
    results = evaluate(
        protocol, backbone, {dataset: folder}, tmp_path / "out", variant=variant, settings=named, progress=False
    )
    return results, folder


def cosine(a, b):
    return float(F.normalize(a.double(), dim=0) @ F.normalize(b.double(), dim=0))


# ---- retrieval -----------------------------------------------------------------------------------------------------


def trapezoids(ranking, ok, junk):
    ap, seen, place = 0.0, 0, 0
    for item in ranking:
        if item in ok:
            ap += ((seen / place if place else 1.0) + (seen + 1) / (place + 1)) / 2
            seen += 1
        place += item not in junk
    return ap / len(ok)


SLOW = pytest.mark.slow


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


# ---- correspondence ------------------------------------------------------------------------------------------------


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


# ---- tracking ------------------------------------------------------------------------------------------------------


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


# ---- anomalies -----------------------------------------------------------------------------------------------------


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


# ---- copies --------------------------------------------------------------------------------------------------------


def test_copies(backbone, tmp_path):
    root = dense_data.copydays(tmp_path / "copydays")
    others, learnt = (dense_data.photo_folder(tmp_path / name) for name in ("distractors", "whitening"))
    data = {"copydays": root, "copydays-distractors": others, "copydays-whitening": learnt}
    results = evaluate("copies", backbone, data, settings={"view.size": 32}, progress=False)

    def vector(path):
        found = features(backbone, pixels(Image.open(path).convert("RGB").resize((32, 32), 3)))[0]
        gem = found.patches[0].double().clamp(min=1e-6).pow(4).mean((1, 2)).pow(0.25)
        return np.concatenate([found.cls[0].double().numpy(), gem.numpy()])

    originals = sorted((root / "original").iterdir())
    database = np.stack([vector(p) for p in [*originals, *sorted(others.iterdir())]])
    white = np.stack([vector(p) for p in sorted(learnt.iterdir())])
    values, basis = np.linalg.eigh(white.T @ white / len(white))
    values = np.maximum(values, 1e-5 * values.max())
    turn = basis / np.sqrt(values)
    database = (database - white.mean(0)) @ turn
    aps, pairs, positives = [], [], 0
    for path in sorted((root / "strong").iterdir()):
        query = (vector(path) - white.mean(0)) @ turn
        similar = database @ query / np.linalg.norm(database, axis=1) / np.linalg.norm(query)
        own = [i for i, p in enumerate(originals) if p.name[:4] == path.name[:4]]
        aps.append(trapezoids(np.argsort(-similar)[:20].tolist(), own, []))
        pairs += [(similar[i], i in own) for i in np.argsort(-similar)[:20]]
        positives += len(own)
    seen, micro = 0, 0.0
    for place, (_, right) in enumerate(sorted(pairs, reverse=True), 1):
        seen += right
        micro += right * seen / place / positives
    assert scores(results, "micro-AP strong") == pytest.approx(100 * micro, abs=1e-3)
    assert scores(results, "mAP strong") == pytest.approx(100 * np.mean(aps), abs=1e-3)
    assert not results[0].notes


# ---- discovery -----------------------------------------------------------------------------------------------------


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


# ---- dense heads ---------------------------------------------------------------------------------------------------


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


# ---- records -------------------------------------------------------------------------------------------------------

OWN = ("segmentation", "depth-nyu", "depth-kitti", "retrieval", "correspondence", "tracking", "anomaly", "copies",
       "discovery")  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_every_setting_has_a_meaning_and_a_source(name):
    for protocol in variants(name):
        for each in protocol.settings():
            assert each.meaning, each.key
            assert each.source, each.key
        assert protocol.traps
        assert protocol.summary.endswith(".")


def test_published_figures_belong_to_a_variant_and_a_dataset():
    for figure in figures():
        if figure.protocol in OWN:
            protocol = find_protocol(figure.protocol, figure.variant)
            assert figure.dataset in protocol.datasets
            assert figure.source
    assert {figure.protocol for figure in figures()} >= set(OWN)


def test_the_heads_of_the_papers_are_those_of_the_package(backbone, tmp_path: Path):
    settings = {"fit__steps": 2, "fit__warmup": 1, "fit__batch_size": 2, "fit__crop": "32,40", "fit__bins": 8}
    results, _ = start("depth-nyu", backbone, tmp_path, "v3", **settings)
    head = load_head(tmp_path / "out" / next(iter(results[0].heads.values())), backbone)
    found = features(backbone, torch.zeros(1, 3, 32, 40))[0]
    x = F.batch_norm(found.patches, head.bn.running_mean, head.bn.running_var, head.bn.weight, head.bn.bias)
    with torch.no_grad():
        weights = F.conv2d(x, head.linear.weight, head.linear.bias).relu() + 0.1
        want = (weights * torch.linspace(0.001, 10, 8)[:, None, None]).sum(1) / weights.sum(1)
        assert torch.allclose(head.maps(found)[:, 0], want, atol=1e-4)
