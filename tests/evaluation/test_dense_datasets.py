"""The official layouts of dense datasets: read in place, counted, and refused with a sentence."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.evaluation import dense_data
from vitbackbone.evaluation import LayoutError, find_layout
from vitbackbone.evaluation.datasets.pairs import IGNORED
from vitbackbone.evaluation.datasets.photos import open_photo

COUNTS = {
    "ade20k": {"training photos": 3, "validation photos": 3, "classes": 150},
    "voc12": {"training photos": 3, "validation photos": 3, "classes": 21},
    "cityscapes": {"training photos": 2, "validation photos": 2, "classes": 19},
    "segmentation-folder": {"training photos": 3, "validation photos": 3, "classes": 3},
    "nyu": {"training photos": 3, "test photos": 3},
    "kitti": {"training photos": 3, "test photos": 3},
    "roxford5k": {"queries": 3, "database photos": 6},
    "spair": {"test pairs": 4, "categories": 2},
    "davis": {"sequences": 2, "frames": 8, "objects": 4},
    "mvtec": {"categories": 2, "training photos": 6, "defect-free test photos": 4, "defective test photos": 4},
    "copydays": {"originals": 3, "strong": 4, "blocks": 2},
    "copydays-distractors": {"photos": 5},
    "voc07-boxes": {"photos": 3},
    "coco20k": {"photos": 3},
}
MAKERS = {"segmentation-folder": dense_data.own_photos, "copydays-distractors": dense_data.photo_folder}


def made(name, tmp_path):
    maker = MAKERS.get(name) or getattr(dense_data, name.replace("-", "_"))
    return maker(tmp_path / "data")


def digest_of(name, root):
    data = find_layout(name).read(root)
    return data.digest() if hasattr(data, "digest") else data.test.digest()


@pytest.mark.parametrize("name", COUNTS)
def test_a_layout_is_read_in_place_and_counted(name, tmp_path):
    root = made(name, tmp_path)
    before = sorted(root.rglob("*"))
    check = find_layout(name).check(root)
    assert dict(check.counts) == COUNTS[name]
    for count, (here, official) in check.differing.items():
        assert here == COUNTS[name][count] != official
    assert sorted(root.rglob("*")) == before
    if not name.startswith("copydays"):  # its photos are compared one folder after the other
        same = digest_of(name, root)
        assert digest_of(name, root) == same
        for file in root.rglob("*.*"):
            os.utime(file, (1, 1))
        assert digest_of(name, root) != same


@pytest.mark.parametrize("name", COUNTS)
def test_an_empty_folder_is_refused_with_the_layout(name, tmp_path):
    with pytest.raises(LayoutError, match="the official layout is"):
        find_layout(name).read(tmp_path)


# a dataset, a file or folder of it to remove, what the sentence says
MISSING = [
    (
        "ade20k",
        "ADEChallengeData2016/annotations/training/001.png",
        "such as annotations/training/001",
    ),
    ("voc12", "VOCdevkit/VOC2012/JPEGImages/2007_000001.jpg", "lacks 1 files"),
    ("cityscapes", "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png", "lacks 1 files"),
    ("nyu", "room_test/depth_1.png", "lacks 1 files that nyu_test.txt names"),
    ("kitti", "kitti_eigen_test.txt", "has no file kitti_eigen_test.txt"),
    ("roxford5k", "roxford5k/jpg/query_1.jpg", "lacks 1 photos that gnd_roxford5k.pkl names"),
    ("spair", "SPair-71k/JPEGImages/cat/0_1.jpg", "lacks 1 photos of its pairs"),
    ("davis", "Annotations/480p/bear1/00002.png", "bear1 has 4 frames and lacks 1 masks"),
    ("mvtec", "screw/ground_truth/hole/001_mask.png", "lacks 1 masks of screw"),
    ("mvtec", "screw/test/good", "needs defect-free photos"),
    ("copydays", "original/202000.jpg", "has 3 photos, and original/ has 2"),
    ("voc07-boxes", "VOCdevkit/VOC2007/Annotations/000001.xml", "not an annotation of Pascal VOC"),
    ("coco20k", "train2014/COCO_train2014_000000000001.jpg", "lacks 1 of 3 photos"),
]


@pytest.mark.parametrize(("name", "path", "sentence"), MISSING)
def test_what_is_missing_is_named(name, path, sentence, tmp_path):
    root = made(name, tmp_path)
    target = root / path
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(LayoutError, match=sentence):
        find_layout(name).read(root)


def test_labels_are_classes_or_ignored(tmp_path):
    ade = find_layout("ade20k").read(dense_data.ade20k(tmp_path / "ade"))
    stored = np.asarray(Image.open(ade.train.root / ade.train.targets[0])).astype(int)
    assert np.array_equal(ade.labels(ade.train, 0), np.where(stored == 0, IGNORED, stored - 1))
    city = find_layout("cityscapes").read(dense_data.cityscapes(tmp_path / "city"))
    stored = np.asarray(Image.open(city.test.root / city.test.targets[0]))
    want = np.select([stored == 7, stored == 23, stored == 33], [0, 10, 18], IGNORED)
    assert np.array_equal(city.labels(city.test, 0), want)
    own = find_layout("segmentation-folder").read(dense_data.own_photos(tmp_path / "own"))
    assert set(np.unique(own.labels(own.train, 0))) <= {0, 1, 2, IGNORED}
    Image.new("RGB", (56, 40)).save(own.train.root / own.train.targets[0])
    with pytest.raises(LayoutError, match="want 8-bit class indices"):
        own.labels(own.train, 0)


def test_targets_have_the_size_of_their_photos(tmp_path):
    own = find_layout("segmentation-folder").read(dense_data.own_photos(tmp_path / "own"))
    nyu = find_layout("nyu").read(dense_data.nyu(tmp_path / "nyu"))
    for data, mode in ((own, "L"), (nyu, "I;16")):
        photo, target = data.pair(data.test, 1)
        assert target.shape == (photo.height, photo.width)
        Image.new(mode, (20, 10)).save(data.test.root / data.test.targets[1])
        with pytest.raises(LayoutError, match=r"1.png has 20 x 10 pixels, and its photo .*; want equal"):
            data.pair(data.test, 1)
    davis = find_layout("davis").read(dense_data.davis(tmp_path / "davis")).sequences[0]
    Image.new("L", (20, 10)).save(davis.root / davis.masks[1])
    with pytest.raises(LayoutError, match="want equal sizes"):
        davis.mask(1)


def test_endings_in_capitals_and_byte_order_marks_are_read(tmp_path):
    for name in ("copydays", "davis"):
        root = made(name, tmp_path / name)
        for file in sorted(root.rglob("*.jpg")):
            file.rename(file.with_suffix(".JPG"))
        assert dict(find_layout(name).check(root).counts) == COUNTS[name]
    root = made("segmentation-folder", tmp_path)
    (root / "classes.txt").write_bytes(b"\xef\xbb\xbfsky\r\nroad\r\n")
    assert find_layout("segmentation-folder").read(root).classes == ["sky", "road"]


def test_depth_is_in_metres(tmp_path):
    nyu = find_layout("nyu").read(dense_data.nyu(tmp_path / "nyu"))
    stored = np.asarray(Image.open(nyu.train.root / nyu.train.targets[0]))
    assert np.allclose(nyu.depth(nyu.train, 0), stored / 1000)
    kitti = find_layout("kitti").read(dense_data.kitti(tmp_path / "kitti"))
    assert len(kitti.test) == 3  # the line whose depth is None is dropped
    assert kitti.scale == 256


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_hostile_files_are_refused(tmp_path, capsys):
    root = dense_data.roxford5k(tmp_path / "ox")
    file = root / "roxford5k/gnd_roxford5k.pkl"
    good = pickle.loads(file.read_bytes())  # noqa: S301  # made by this test
    for wrong, sentence in (
        (Evil(), "is refused"),
        ([1], "must hold a dict"),
        (good | {"imlist": ["../../etc/passwd"]}, "want a path inside the dataset"),
        (good | {"gnd": [{**good["gnd"][0], "easy": [99]}, *good["gnd"][1:]]}, "names an image that imlist lacks"),
    ):
        file.write_bytes(pickle.dumps(wrong, protocol=2))
        with pytest.raises(LayoutError, match=sentence):
            find_layout("roxford5k").read(root)
    assert "run" not in capsys.readouterr().out

    root = dense_data.nyu(tmp_path / "nyu")
    (root / "nyu_test.txt").write_text("/../../etc/passwd /x.png 1\n")
    with pytest.raises(LayoutError, match="want a path inside the dataset"):
        find_layout("nyu").read(root)

    root = dense_data.voc07_boxes(tmp_path / "voc")
    bomb = '<!DOCTYPE a [<!ENTITY b "b">]><annotation/>'
    (root / "VOCdevkit/VOC2007/Annotations/000000.xml").write_text(bomb)
    with pytest.raises(LayoutError, match="document type"):
        find_layout("voc07-boxes").read(root)

    root = dense_data.spair(tmp_path / "spair")
    file = next((root / "SPair-71k/PairAnnotation/test").iterdir())
    record = json.loads(file.read_text())
    for change, sentence in (({"src_kps": [[1]]}, "pairs of numbers"), ({"trg_kps": [[1, 2]]}, "1 target keypoints")):
        file.write_text(json.dumps(record | change))
        with pytest.raises(LayoutError, match=sentence):
            find_layout("spair").read(root)
    file.write_text(json.dumps(record | {"category": "../x"}))
    with pytest.raises(LayoutError, match="inside the dataset"):
        find_layout("spair").read(root)


def test_photos_are_read_as_stored_or_named(tmp_path):
    picture = np.asarray(Image.open(dense_data.save(tmp_path / "a.png")))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(picture).save(tmp_path / "b.png", exif=exif)
    assert np.array_equal(np.asarray(open_photo(tmp_path / "b.png")), picture)
    (tmp_path / "c.jpg").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(LayoutError, match="c.jpg cannot be read.*run the command again"):
        open_photo(tmp_path / "c.jpg")
    (tmp_path / "d.jpg").write_bytes(b"no photo")
    with pytest.raises(LayoutError, match="d.jpg cannot be read: it is not an image of a known format"):
        open_photo(tmp_path / "d.jpg")


def test_boxes_of_coco_leave_crowds_out_and_are_rounded(tmp_path):
    coco = find_layout("coco20k").read(dense_data.coco20k(tmp_path))
    assert [each.tolist() for each in coco.boxes] == [[[0, 1, 41, 31]]] * 3
