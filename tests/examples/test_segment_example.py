"""The segmentation example learns, resumes, measures, draws, and refuses wrong data."""

import importlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from heads import attach, create_head
from tests.helpers import photo, randomise, tiny_vit
from vitbackbone import load_backbone

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))  # the examples import each other
segment, training, segmentation_data = map(importlib.import_module, ("segment", "training", "segmentation_data"))

COLOURS = np.array([[200, 60, 50], [40, 170, 60], [60, 80, 210], [128, 128, 128]], dtype=np.uint8)  # the last is void


def draw(folder: Path, name: str, seed: int, void: int) -> None:
    """Stripes of three colours, which are the classes, and of a fourth, which is void."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(4)[np.arange(64) // 16][None].repeat(48, 0)
    for kind, array in {"images": COLOURS[label], "labels": np.where(label == 3, void, label).astype(np.uint8)}.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / kind / f"{name}.png")


def draw_data(data: Path, void: int = 3) -> Path:
    for i in range(8):
        draw(data / ("val" if i < 2 else "train"), f"scene{i}", i, void)
    (data / "classes.txt").write_text("red\ngreen\nblue\n")
    return data


def run(*words: object) -> str:
    """Return the output of a command."""
    args = segment.parser().parse_args([str(word) for word in words])
    with redirect_stdout(io.StringIO()) as printed:
        args.run(args)
    return printed.getvalue()


def train(data: Path, out: Path, *more: object) -> str:
    quick = ("--steps", 8, "--batch-size", 4, "--crop", 32, "--save-every", 2, "--lr", 0.02)
    return run("train", data, "--out", out, *quick, *more)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train(data, out, "--steps", 40)
    return out


# ---- train and use ------------------------------------------------------------------------------------------------


def test_a_head_learns_the_classes_and_eval_measures_them(data: Path, trained: Path) -> None:
    printed = run("eval", data / "val", "--head", trained)
    values = {line.split()[0]: float(line.split()[1]) for line in printed.splitlines()[1:]}
    assert list(values) == ["red", "green", "blue", "mIoU"]
    assert values["mIoU"] > 75

    segmenter, hits, unions = segment.load(trained), np.zeros(3), np.zeros(3)
    for image in sorted((data / "val" / "images").iterdir()):
        found = segmenter(Image.open(image)).numpy()
        truth = np.asarray(Image.open(data / "val" / "labels" / image.name))
        for k in range(3):
            a, b = (found == k) & (truth != 3), truth == k
            hits[k], unions[k] = hits[k] + (a & b).sum(), unions[k] + (a | b).sum()
    assert list(values.values()) == pytest.approx([*100 * hits / unions, 100 * (hits / unions).mean()], abs=0.051)


def test_a_class_that_is_neither_there_nor_found_counts_for_nothing() -> None:
    classes = segmentation_data.Classes(("a", "b"), 2)
    printed = segment.table(torch.tensor([0.5, torch.nan]), classes)
    assert printed.splitlines()[-1].split() == ["mIoU", "50.0"]


def test_predict_draws_the_classes_over_the_photo(trained: Path, tmp_path: Path) -> None:
    stripes = Image.fromarray(COLOURS[np.arange(150)[None].repeat(37, 0) // 50])
    stripes.save(tmp_path / "photo.png")
    out = tmp_path / "new" / "prediction.png"
    run("predict", tmp_path / "photo.png", "--head", trained, "--out", out)
    picture = np.asarray(Image.open(out).convert("RGB")).astype(float)
    assert picture.shape[1] == 150
    legend = picture[38:].reshape(-1, 3)
    for colour in picture[18, [25, 75, 125]]:
        assert np.abs(legend - colour).max(axis=1).min() < 12  # the mean over the class, of stripes of one colour


@pytest.mark.parametrize("exposure", [1, 0.15])
def test_the_legend_has_the_colours_that_are_seen(exposure: float) -> None:
    labels = torch.arange(11).repeat_interleave(20)[None].expand(60, -1)
    shot = photo(60, 220).point(lambda value: value * exposure)
    names = tuple(f"class {i}" for i in range(11))
    whole = np.asarray(segment.picture(shot, labels, segmentation_data.Classes(names, 11))).astype(float)
    seen = np.stack([whole[:60, 20 * i : 20 * i + 20].mean(axis=(0, 1)) for i in range(11)])
    for colour in seen:
        assert np.abs(whole[61:].reshape(-1, 3) - colour).max(axis=1).min() < 1
    apart = np.abs(seen[:, None] - seen).sum(-1)[~np.eye(11, dtype=bool)]
    assert apart.min() > 60


@pytest.mark.parametrize("size", [(48, 64), (50, 71), (20, 90), (10, 12)])
def test_windows_cover_a_photo_of_any_size(size: tuple[int, int]) -> None:
    backbone = tiny_vit()
    backbone.preprocess = load_backbone("nano").preprocess
    head = randomise(create_head("multilayer", backbone.spec, num_classes=5, layers=(-2, -1)))
    segmenter = segment.Segmenter(
        attach(backbone, {segment.NAME: head}), segmentation_data.Classes(tuple("abcde"), 5), 32
    )
    image = photo(*size)
    with torch.inference_mode():
        x = backbone.preprocess(image, size, keep_aspect=True)
        scores = torch.zeros(5, *size)
        for top, left in segmentation_data.windows(*size, 32):
            part = segmenter.model(x[None, :, top : top + 32, left : left + 32])[segment.NAME][0]
            right, bottom = size[1] - left - part.shape[2], size[0] - top - part.shape[1]
            scores += torch.nn.functional.pad(part, (left, right, top, bottom))
        assert (segmenter(image) == scores.argmax(0)).float().mean() > 0.999  # a batch rounds otherwise than one


@pytest.mark.parametrize("length", [1, 31, 32, 33, 56, 57, 360, 480])
def test_windows_overlap_by_a_quarter(length: int) -> None:
    places = [left for _, left in segmentation_data.windows(32, length, 32)]
    assert places[0] == 0
    assert places[-1] == max(0, length - 32)
    assert all(0 < b - a <= 25 for a, b in pairwise(places))  # 24, and half a pixel of rounding
    assert len(places) < length / 24 + 1


# ---- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        (),
        pytest.param(("--finetune", "--precision", "bf16"), marks=pytest.mark.slow),  # on a CPU without bf16
        ("--weights", "random"),
    ],
)
def test_an_interrupted_training_ends_with_the_same_head(
    more: tuple[str, ...], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(data, whole, *more)
    real, steps = segment.draw_batch, []

    def interrupted(*args: object) -> object:
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(segment, "draw_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(data, cut, *more)
    train(data, cut, *more)
    assert len(steps) == 6 + 8 - 4  # the checkpoint is of step 4

    files = ["head.safetensors", "head.json", "segment.json", "training.json"] + ["backbone.safetensors"] * bool(more)
    for name in files:
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    assert json.loads((cut / "training.json").read_text())["loss"] > 0
    assert segment.load(cut).window == 32
    assert (cut / "backbone.safetensors").exists() == bool(more)


def test_a_finetuned_backbone_has_learned_and_a_frozen_one_has_not(data: Path, tmp_path: Path) -> None:
    own = load_backbone("nano").state_dict()
    train(data, tmp_path / "tuned", "--finetune", "--lr", 1e-3)
    tuned = segment.load(tmp_path / "tuned").model.backbone.state_dict()
    assert all(not torch.equal(own[name], tuned[name]) for name in own)

    args = segment.parser().parse_args(["train", str(data), "--out", str(tmp_path / "frozen"), "--steps", "2"])
    backbone = load_backbone("nano")
    pairs = segmentation_data.find_pairs(data / "train")
    segment.fit_segmenter(backbone, pairs, segmentation_data.Classes.of(data, None), args)
    assert all(torch.equal(own[name], value) for name, value in backbone.state_dict().items())
    assert backbone.frozen


def test_drop_path_acts_and_learning_rates_decay_by_block(data: Path, tmp_path: Path) -> None:
    backbone = tiny_vit()
    training.set_drop_path(backbone, 0.3)
    assert [block.drop_path.rate for block in backbone.blocks] == pytest.approx([0, 0.15, 0.3])
    settings = training.Settings(steps=1, lr=2.0, weight_decay=0.1)
    groups = training.backbone_groups(backbone, settings, 0.5)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(rates) == len(list(backbone.parameters()))
    assert rates[id(backbone.norm.weight)] == (2.0, 0.0)
    assert [rates[id(block.mlp.fc1.weight)] for block in backbone.blocks] == [(0.25, 0.1), (0.5, 0.1), (1.0, 0.1)]
    assert rates[id(backbone.patch_embed.proj.weight)] == (0.125, 0.1)
    assert rates[id(backbone.cls_token)] == (0.125, 0.0)

    args = ["train", str(data), "--out", str(tmp_path), "--steps", "1", "--finetune", "--drop-path", "0.4"]
    tuned = load_backbone("nano")
    pairs = segmentation_data.find_pairs(data / "train")
    classes = segmentation_data.Classes.of(data, None)
    segment.fit_segmenter(tuned, pairs, classes, segment.parser().parse_args(args))
    assert tuned.blocks[-1].drop_path.rate == 0.4
    assert tuned.training


def test_which_label_is_ignored_does_not_matter(data: Path, tmp_path: Path) -> None:
    other = draw_data(tmp_path / "data", void=255)
    printed = train(data, tmp_path / "three"), train(other, tmp_path / "many", "--ignore", 255)
    assert printed[0].splitlines()[1:] == printed[1].splitlines()[1:]
    assert (tmp_path / "three/head.safetensors").read_bytes() == (tmp_path / "many/head.safetensors").read_bytes()


def test_an_ignored_label_is_not_learned(tmp_path: Path) -> None:
    data = draw_data(tmp_path / "data", void=1)
    train(data, tmp_path / "out", "--ignore", 1, "--steps", 20)
    segmenter = segment.load(tmp_path / "out")
    found = segmenter(Image.open(data / "train/images/scene3.png")).numpy()
    there = np.asarray(Image.open(data / "train/labels/scene3.png")) == 1
    assert (found == 1)[there].mean() < 0.7  # chance, of what nothing was learned about; 1 if it was
    printed = run("eval", data / "val", "--head", tmp_path / "out")
    assert printed.splitlines()[2].split() == ["green", "nan"]


@pytest.mark.parametrize(
    ("side", "corners"), [(32, {(0, 0), (0, 16), (0, 32), (16, 0), (16, 16), (16, 32)}), (80, {(0, 0)})]
)
def test_a_batch_has_windows_of_photos_and_their_labels(data: Path, side: int, corners: set[tuple[int, int]]) -> None:
    classes, preprocess = segmentation_data.Classes(("red", "green", "blue"), 3), load_backbone("nano").preprocess
    assert set(segmentation_data.windows(48, 64, side)) == corners
    pairs = segmentation_data.find_pairs(data / "train")
    colours = (torch.from_numpy(COLOURS) / 255 - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std)
    seen = set()
    for seed in range(10):
        torch.manual_seed(seed)
        augment = segmentation_data.augmentation(colours=False)
        images, labels = segmentation_data.draw_batch(pairs, 4, side, augment, classes, preprocess)
        assert images.shape == (4, 3, side, side)
        nearest = (images[:, None] - colours[:, :, None, None]).abs().sum(2).argmin(1)
        known = labels != 3
        assert torch.equal(nearest[known], labels[known])
        assert known[:, 48:].sum() == known[:, :, 64:].sum() == 0  # outside of the photo
        seen |= {tuple(label[0, :32].tolist()) for label in labels}
    assert len(seen) > 5  # other photos, windows and flips


# ---- what is refused ----------------------------------------------------------------------------------------------


def resave(file: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    with Image.open(file) as image:
        change(image).save(file)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no val": (lambda d: shutil.rmtree(d / "val"), "val has no folder images"),
    "no labels": (lambda d: shutil.rmtree(d / "train/labels"), "train has no folder labels"),
    "no photos": (lambda d: [file.unlink() for file in (d / "val/images").iterdir()], "images is empty"),
    "no label": (lambda d: (d / "train/labels/scene3.png").unlink(), "no label for 1 of 6 photos: scene3.png"),
    "sizes": (
        lambda d: resave(d / "train/images/scene3.png", lambda image: image.resize((60, 40))),
        "60 x 40 pixels and .*scene3.png 64 x 48",
    ),
    "out of range": (
        lambda d: resave(d / "train/labels/scene3.png", lambda label: label.point(lambda v: v + 3)),
        r"labels \[4, 5, 6\]; want 0 to 2, or 3, which is ignored",
    ),
    "colours": (
        lambda d: resave(d / "train/labels/scene3.png", lambda label: label.convert("RGB")),
        "has the mode RGB",
    ),
    "no such class": (lambda d: (d / "classes.txt").write_text("a\nb\nc\nvoid\nd\n"), "no pixel of .* is d"),
    "no classes": (lambda d: (d / "classes.txt").write_text("\n"), "classes.txt is empty"),
    "damaged": (lambda d: (d / "train/images/scene3.png").write_bytes(b"no photo"), "scene3.png"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_is_refused_before_training(case: str, data: Path, tmp_path: Path) -> None:
    spoil, message = WRONG[case]
    spoil(shutil.copytree(data, tmp_path / "data"))
    with pytest.raises((ValueError, OSError), match=message):
        train(tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_head_of_another_backbone_and_no_head_are_refused(data: Path, trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "head")
    record = json.loads((folder / "segment.json").read_text())
    (folder / "segment.json").write_text(json.dumps({**record, "own_weights": True}))
    other = {name: value + 1e-3 for name, value in load_backbone("nano").state_dict().items()}
    segment.save_file(other, folder / "backbone.safetensors")
    with pytest.raises(ValueError, match="was fitted to nano"):
        run("eval", data / "val", "--head", folder)
    with pytest.raises(ValueError, match=r"holds no head that `segment.py train` wrote"):
        run("eval", data / "val", "--head", tmp_path)


def test_another_run_and_a_loss_that_explodes_are_refused(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "--steps", 1)
    with pytest.raises(SystemExit, match="belongs to a run with"):
        train(data, tmp_path, "--steps", 1, "--head", "linear")
    with pytest.raises(ValueError, match="try a lower learning rate"):
        train(data, tmp_path / "other", "--lr", 1e30)


def test_exit_codes() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert training.exit_code(lambda: None) == 0
    assert training.exit_code(interrupted) == 130


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    words = [sys.executable, EXAMPLES / "segment.py", "eval", tmp_path, "--head", tmp_path]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
