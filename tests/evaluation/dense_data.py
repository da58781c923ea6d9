"""Tiny datasets of dense protocols and retrieval, in their official layouts."""

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers import photo

HEIGHT, WIDTH = 40, 56


def save(path: Path, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(height, width, seed).save(path)
    return path


def blocks(seed: int, values: list[int], height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Labels in blocks of 8 pixels."""
    coarse = np.random.default_rng(seed).choice(values, (-(-height // 8), -(-width // 8)))
    return np.kron(coarse, np.ones((8, 8), int))[:height, :width].astype(np.uint8)


def save_labels(path: Path, labels: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    if palette:
        image.putpalette([i % 256 for i in range(768)])
    image.save(path)


def ade20k(root: Path, photos: int = 3) -> Path:
    for split, first in (("training", 0), ("validation", 10)):
        for i in range(photos):
            save(root / f"ADEChallengeData2016/images/{split}/{i:03}.jpg", seed=first + i)
            save_labels(
                root / f"ADEChallengeData2016/annotations/{split}/{i:03}.png", blocks(first + i, [0, 1, 2, 150])
            )
    return root


def voc12(root: Path, photos: int = 3) -> Path:
    base = root / "VOCdevkit/VOC2012"
    (base / "ImageSets/Segmentation").mkdir(parents=True)
    for split, first in (("train", 0), ("val", 10)):
        names = [f"2007_{first + i:06}" for i in range(photos)]
        (base / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
        for i, name in enumerate(names):
            save(base / f"JPEGImages/{name}.jpg", seed=first + i)
            save_labels(base / f"SegmentationClass/{name}.png", blocks(first + i, [0, 3, 20, 255]), palette=True)
    return root


def cityscapes(root: Path, photos: int = 2) -> Path:
    for split, first in (("train", 0), ("val", 10)):
        for i in range(photos):
            name = f"{split}/ulm/ulm_{i:06}_000019"
            save(root / f"leftImg8bit/{name}_leftImg8bit.png", seed=first + i)
            save_labels(root / f"gtFine/{name}_gtFine_labelIds.png", blocks(first + i, [0, 7, 23, 33]))
    return root


def own_photos(root: Path, photos: int = 3) -> Path:
    for split, first in (("train", 0), ("val", 10)):
        for i in range(photos):
            save(root / f"{split}/images/{i}.jpg", seed=first + i)
            save_labels(root / f"{split}/labels/{i}.png", blocks(first + i, [0, 1, 2, 3]))
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    return root


def depths(seed: int, least: float, most: float, scale: float, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    metres = rng.uniform(least, most, (height, width))
    return np.where(rng.random((height, width)) < 0.2, 0, metres * scale).astype(np.uint16)


def nyu(root: Path, photos: int = 3) -> Path:
    for split, first in (("train", 0), ("test", 10)):
        lines = []
        for i in range(photos):
            save(root / f"room_{split}/rgb_{i}.jpg", 48, 64, first + i)
            Image.fromarray(depths(first + i, 0.5, 9, 1000, 48, 64)).save(root / f"room_{split}/depth_{i}.png")
            lines.append(f"/room_{split}/rgb_{i}.jpg /room_{split}/depth_{i}.png 518.8579")
        (root / f"nyu_{split}.txt").write_text("\n".join(lines))
    return root


def kitti(root: Path, photos: int = 3) -> Path:
    for split, first in (("train", 0), ("test", 10)):
        lines = []
        for i in range(photos):
            save(root / f"input/drive_{split}/{i}.png", 48, 80, first + i)
            (root / f"gt_depth/drive_{split}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(depths(first + i, 1, 70, 256, 48, 80)).save(root / f"gt_depth/drive_{split}/{i}.png")
            lines.append(f"drive_{split}/{i}.png drive_{split}/{i}.png 721.5377")
        (root / f"kitti_eigen_{split}.txt").write_text("\n".join([*lines, f"drive_{split}/9.png None 721.5377"]))
    return root


def roxford5k(root: Path, photos: int = 6, queries: int = 3, name: str = "roxford5k") -> Path:
    names = [f"all_souls_{i:06}" for i in range(photos)]
    asked = [f"query_{i}" for i in range(queries)]
    for i, each in enumerate([*names, *asked]):
        save(root / f"{name}/jpg/{each}.jpg", HEIGHT + i, WIDTH - i, i)
    gnd = [
        {"bbx": [2.0, 3.0, 30.0, 35.0], "easy": np.array([i]), "hard": np.array([i + 1, i + 2]), "junk": np.array([0])}
        for i in range(1, queries + 1)
    ]
    gnd[-1] |= {"easy": np.array([], dtype=int), "hard": [], "junk": [1]}
    (root / f"{name}/gnd_{name}.pkl").write_bytes(
        pickle.dumps({"imlist": names, "qimlist": asked, "gnd": gnd}, protocol=2)
    )
    return root


def spair(root: Path, pairs: int = 4) -> Path:
    base, rng, names = root / "SPair-71k", np.random.default_rng(0), []
    for i in range(pairs):
        category = ("cat", "dog")[i % 2]
        sizes = [(40, 60), (60, 44)]
        for j, (height, width) in enumerate(sizes):
            save(base / f"JPEGImages/{category}/{i}_{j}.jpg", height, width, 2 * i + j)
        count = 2 + i
        points = [rng.integers(1, (width - 1, height - 1), (count, 2)).tolist() for height, width in sizes]
        name = f"{i:06}-{i}_0-{i}_1:{category}"
        record = {
            "category": category,
            "src_imname": f"{i}_0.jpg",
            "trg_imname": f"{i}_1.jpg",
            "src_kps": points[0],
            "trg_kps": points[1],
            "trg_bndbox": [2, 3, 42, 55],
        }
        (base / "PairAnnotation/test").mkdir(parents=True, exist_ok=True)
        (base / f"PairAnnotation/test/{name}.json").write_text(json.dumps(record))
        names.append(name)
    (base / "Layout/large").mkdir(parents=True)
    (base / "Layout/large/test.txt").write_text("\n".join(names))
    return root


def davis(root: Path, videos: int = 2, frames: int = 4) -> Path:
    (root / "ImageSets/2017").mkdir(parents=True)
    names = [f"bear{i}" for i in range(videos)]
    (root / "ImageSets/2017/val.txt").write_text("\n".join(names))
    for v, name in enumerate(names):
        whole = np.asarray(photo(64, 96, v))
        for i in range(frames):
            moved = Image.fromarray(np.roll(whole, 3 * i, axis=1))
            mask = np.zeros((64, 96), dtype=np.uint8)
            mask[10:30, 20 + 3 * i : 50 + 3 * i], mask[40:60, 5 + 3 * i : 25 + 3 * i] = 1, 2
            (root / f"JPEGImages/480p/{name}").mkdir(parents=True, exist_ok=True)
            moved.save(root / f"JPEGImages/480p/{name}/{i:05}.jpg")
            save_labels(root / f"Annotations/480p/{name}/{i:05}.png", mask, palette=True)
    return root


def mvtec(root: Path, categories: tuple[str, ...] = ("bottle", "screw")) -> Path:
    for c, category in enumerate(categories):
        for i in range(3):
            save(root / f"{category}/train/good/{i:03}.png", seed=10 * c + i)
        for i in range(2):
            save(root / f"{category}/test/good/{i:03}.png", seed=10 * c + 4 + i)
            damaged = np.array(photo(HEIGHT, WIDTH, 10 * c + 6 + i))
            damaged[10:20, 12:30] = (255, 0, 40 * i)
            mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
            mask[10:20, 12:30] = 255
            for kind, pixels in ((f"test/hole/{i:03}.png", damaged), (f"ground_truth/hole/{i:03}_mask.png", mask)):
                (root / category / kind).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / category / kind)
    return root


def copydays(root: Path, originals: int = 3) -> Path:
    for i in range(originals):
        save(root / f"original/{200 + i}000.jpg", seed=i)
        save(root / f"jpegqual/3/{200 + i}000.jpg", seed=i)
        for j in range(1 + i % 2):
            save(root / f"strong/{200 + i}0{j + 1:02}.jpg", HEIGHT + 4 * j, WIDTH, seed=i)
    return root


def photo_folder(root: Path, photos: int = 5) -> Path:
    for i in range(photos):
        save(root / f"{i}.jpg", seed=50 + i)
    return root


def voc07_boxes(root: Path, photos: int = 3) -> Path:
    base = root / "VOCdevkit/VOC2007"
    (base / "ImageSets/Main").mkdir(parents=True)
    (base / "Annotations").mkdir()
    names = [f"{i:06}" for i in range(photos)]
    (base / "ImageSets/Main/trainval.txt").write_text("\n".join(names))
    for i, name in enumerate(names):
        save(base / f"JPEGImages/{name}.jpg", seed=i)
        box = "<xmin>1</xmin><ymin>1</ymin><xmax>40.7</xmax><ymax>30</ymax>"
        found = f"<object><name>cat</name><difficult>1</difficult><bndbox>{box}</bndbox></object>"
        (base / f"Annotations/{name}.xml").write_text(f"<annotation>{found * (i + 1)}</annotation>")
    return root


def coco20k(root: Path, photos: int = 3) -> Path:
    names = [f"COCO_train2014_{i:012}.jpg" for i in range(photos)]
    images, annotations = [], []
    for i, name in enumerate(names):
        save(root / f"train2014/{name}", seed=i)
        images.append({"id": i, "file_name": name})
        annotations.append({"image_id": i, "iscrowd": 0, "bbox": [0.4, 0.6, 40.2, 30.0]})
        annotations.append({"image_id": i, "iscrowd": 1, "bbox": [0, 0, 56, 40]})
    (root / "annotations").mkdir()
    content = {"images": images, "annotations": annotations}
    (root / "annotations/instances_train2014.json").write_text(json.dumps(content))
    (root / "coco_20k_filenames.txt").write_text("\n".join(f"train2014/{name}" for name in names))
    return root
