"""`preprocessor_config.json` read as transformers reads it: by class, with each class's own defaults, or refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor

from tests.checkpoints.sampling import covering
from tests.helpers import tiny_vit
from vitbackbone import Preprocess, load_backbone, save_pretrained
from vitbackbone.checkpoints.huggingface import VIT_EVAL, read_preprocess
from vitbackbone.checkpoints.huggingface.processor import write_preprocess
from vitbackbone.checkpoints.huggingface.processor_classes import PROCESSORS, SAM_EVAL
from vitbackbone.checkpoints.huggingface.processor_sizes import OWN_SIZES

SMOOTH = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8))
PHOTOS = [SMOOTH.resize(size, Image.Resampling.BICUBIC) for size in [(400, 259), (141, 290), (256, 256)]]
# ViTHybrid's is gone from transformers 5. Those of OWN_SIZES give every photo its own size; see below.
THERE = [name for name in PROCESSORS if hasattr(transformers, name) and name not in OWN_SIZES]
TORCHVISION = ("DINOv3ViTImageProcessor", "Tipsv2ImageProcessor", "Sam2ImageProcessor", "Sam3ImageProcessor")


def theirs(settings: dict[str, Any], folder: Path, backend: str) -> Any:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    return AutoImageProcessor.from_pretrained(folder, backend=backend)


def check(settings: dict[str, Any], folder: Path, default: Preprocess = VIT_EVAL) -> None:
    """Ours is Pillow's processor to 1e-5, and with torchvision's resampling torchvision's, in levels of 255."""
    name = str(settings.get("image_processor_type", ""))
    only = name.removesuffix("Fast") in TORCHVISION  # resizes floats, which are not rounded between and after the axes
    ours = read_preprocess(settings, default)
    for backend in ("torchvision",) if only else ("pil", "torchvision"):
        processor = theirs(settings, folder, backend)
        resampling = "pillow" if backend == "pil" else "torchvision"
        preprocess = Preprocess(**{**vars(ours), "resampling": resampling})
        for photo in PHOTOS:
            want = processor(photo, return_tensors="pt")["pixel_values"][0]
            got = preprocess(photo)
            assert got.shape == want.shape
            level = (1 / 255 / torch.tensor(preprocess.std)).abs().view(3, 1, 1)
            most = 1.8 if only else 0.51 if preprocess.crop_mode == "pad" else 1e-3
            assert ((got - want).abs() / level).max() <= most


@pytest.mark.parametrize(("name", "written"), covering(THERE, ["", "Fast"]))
def test_a_class_alone_has_its_own_defaults(name: str, written: str, tmp_path: Path) -> None:
    settings = {"image_processor_type": name + written}
    check(settings, tmp_path)
    expected = "torchvision" if written or name in TORCHVISION else "pillow"
    assert read_preprocess(settings, VIT_EVAL).resampling == expected


@pytest.mark.parametrize("name", [name for name in THERE if name != "SamImageProcessor"])
def test_what_a_processor_saves_is_read_again(name: str, tmp_path: Path) -> None:
    getattr(transformers, name)().save_pretrained(tmp_path)
    check(json.loads((tmp_path / "preprocessor_config.json").read_text()), tmp_path)


SIZED = [
    {"size": 96},
    {"size": [64, 96]},
    {"size": {"height": 64, "width": 96}},
    {"size": {"shortest_edge": 96}},
    {"size": {"shortest_edge": 96}, "crop_size": 80, "do_center_crop": True},
    {"size": {"shortest_edge": 97}, "crop_size": {"height": 80, "width": 80}, "do_center_crop": True},
    {"size": {"height": 96, "width": 96}, "crop_size": [83, 83], "do_center_crop": True},
    {"size": {"height": 96, "width": 48}, "crop_size": [64, 32], "do_center_crop": True},
    {"size": {"shortest_edge": 96}, "do_center_crop": False},
    {"size": {"shortest_edge": 96}, "crop_size": {"height": 80, "width": 64}, "do_center_crop": True},
    {"size": 64, "crop_size": 96, "do_center_crop": True},
    {"size": {"shortest_edge": 96, "longest_edge": 120}},
    {"size": {"longest_edge": 96}},
    {"size": {"max_height": 96, "max_width": 64}},
    {"size": {"height": 96, "width": 96}, "do_pad": True, "pad_size": {"height": 96, "width": 96}},
    {"size": {"height": 96, "width": 96}, "do_pad": True, "pad_size": {"height": 128, "width": 128}},
    {"do_rescale": False, "size": {"height": 64, "width": 64}},
    {"rescale_factor": 1 / 127.5, "size": {"height": 64, "width": 64}},
    {"do_normalize": False, "size": {"height": 64, "width": 64}},
    {"image_mean": 0.4, "image_std": 0.3, "size": {"height": 64, "width": 64}},
    {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"height": 64, "width": 64}},
    {"resample": 0, "size": {"height": 64, "width": 64}},
    {"resample": 1, "size": {"height": 64, "width": 64}},
    {"resample": 3, "size": {"height": 320, "width": 320}},
    {"resample": 4, "size": {"height": 64, "width": 64}},
    {"do_resize": False},
    {"crop_pct": 0.8, "size": {"shortest_edge": 96}},
    {"crop_pct": 0.8, "size": {"shortest_edge": 400}},
    {"rescale_offset": True, "include_top": False, "size": {"height": 64, "width": 64}},
    {"rescale_offset": True, "rescale_factor": 1 / 127.5, "size": {"height": 64, "width": 64}},
    {"do_flip_channel_order": True, "size": {"height": 64, "width": 64}},
    {"do_convert_rgb": True, "processor_class": "X", "size": {"height": 64, "width": 64}},
]


@pytest.mark.parametrize(
    ("settings", "names"), [pytest.param(row, THERE[n % 8 :: 8], id=str(row)) for n, row in enumerate(SIZED)]
)
def test_settings_are_followed_or_refused_by_some_classes(
    settings: dict[str, Any], names: list[str], tmp_path: Path
) -> None:
    follow(settings, names, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("settings", SIZED, ids=str)
def test_settings_are_followed_or_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    never = (
        "longest_edge",
        "max_height",
        "do_flip",
        "'do_resize': False",
        "128",
        "'resample': 4",
        "'width': 64}, 'do_c",
    )
    followed = follow(settings, THERE, tmp_path)
    assert followed or any(text in str(settings) for text in never) or "'size': 64" in str(settings)


def follow(settings: dict[str, Any], names: list[str], tmp_path: Path) -> int:
    """Check the settings under each class name, and return how many classes follow them."""
    followed = 0
    for name in names:
        given = {"image_processor_type": name, **settings}
        if name.startswith("DINOv3") and settings.get("do_rescale") is False:
            continue  # fails in transformers itself
        try:
            read_preprocess(given, VIT_EVAL)
        except ValueError as error:
            assert any(f"{key}=" in str(error) for key in {**settings, **PROCESSORS[name].defaults()})  # noqa: PT017
            continue
        check(given, tmp_path)
        followed += 1
    return followed


@pytest.mark.parametrize("settings", [{"do_rescale": False}, {"rescale_factor": 1.0}], ids=str)
def test_pixels_that_are_not_scaled_are_those_of_the_default_of_transformers(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    given = {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}, **settings}
    processor = theirs(given, tmp_path, "torchvision")
    for photo in PHOTOS:  # a level of Pillow would be 2
        want = processor(photo, return_tensors="pt")["pixel_values"][0]
        assert (read_preprocess(given, VIT_EVAL)(photo) - want).abs().max() < 1e-3
    assert read_preprocess({**given, "image_processor_type": "ViTImageProcessorPil"}, VIT_EVAL).resampling == "pillow"


@pytest.mark.parametrize("named", ["ViTFeatureExtractor", "CLIPFeatureExtractor", "BeitFeatureExtractor"])
def test_older_files_name_an_extractor(named: str, tmp_path: Path) -> None:
    settings = {"feature_extractor_type": named, "size": {"height": 64, "width": 64}, "do_center_crop": False}
    check(settings, tmp_path)


def test_a_file_without_a_class_has_that_of_its_model(tmp_path: Path) -> None:
    check({"size": 96, "resample": 3}, tmp_path)
    check({"do_resize": True}, tmp_path)
    assert read_preprocess({}, SAM_EVAL) == SAM_EVAL


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"image_processor_type": "MobileViTImageProcessor"},
            "image_processor_type='MobileViTImageProcessor'; want one",
        ),
        ({"image_processor_type": 3}, "image_processor_type=3"),
        ({"patch_size": 16}, "patch_size=16, which .* does not know"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order=True"),
        ({"crop_pct": 0.9}, "crop_pct=0.9"),
        ({"size": "224"}, "size='224'; want whole numbers"),
        ({"size": 2.5}, "size=2.5"),
        ({"size": {"height": 10**9, "width": 10**9}}, "size="),
        ({"size": {"height": 0, "width": 4}}, "size="),
        ({"size": [1, 2, 3]}, "size="),
        ({"do_normalize": "yes"}, "do_normalize='yes'; want true or false"),
        ({"image_mean": [0.1, 0.2]}, "2 values of image_mean and 3 of image_std; want the same number"),
        ({"image_mean": []}, r"image_mean=\[\]; want a number for each channel"),
        ({"image_mean": "x"}, "image_mean='x'"),
        ({"image_std": 0}, "image_std=0; want no zero"),
        ({"image_std": [1, 0, 1]}, "image_std="),
        ({"rescale_factor": 0}, "rescale_factor=0"),
        ({"rescale_factor": 1e-300}, "rescale_factor=1e-300; want 0, or a number between"),
        ({"image_mean": [1e300, 0, 0]}, r"image_mean=1e\+300"),
        ({"rescale_factor": float("nan")}, "rescale_factor=nan"),
        ({"resample": "bicubic"}, "resample='bicubic'"),
        ({"do_resize": False}, "do_resize=False"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_its_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"preprocessor_config.json has {message}"):
        read_preprocess(settings, VIT_EVAL)


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (50, 50), (1, 60), (1024, 33)])
def test_sam_pads_at_the_right_and_bottom(size: tuple[int, int], tmp_path: Path) -> None:
    pad = {"height": 64, "width": 64}
    settings = {"image_processor_type": "SamImageProcessor", "size": {"longest_edge": 64}, "pad_size": pad}
    ours = read_preprocess(settings, SAM_EVAL)
    photo = SMOOTH.resize(size)
    want = theirs(settings, tmp_path, "pil")(photo, return_tensors="pt")["pixel_values"][0]
    view = ours.view((size[1], size[0]))
    inside = (slice(None), slice(0, view.resized[0]), slice(0, view.resized[1]))
    assert (ours(photo)[inside] - want[inside]).abs().max() < 1e-5
    assert (ours(photo) - want).abs().max() < 0.51 / 255 / 0.224
    assert view.to_source(*view.from_source(3.0, 0.5)) == pytest.approx((3.0, 0.5))
    for wrong in ({"do_pad": False}, {"pad_size": {"height": 96, "width": 96}}, {"size": pad}):
        with pytest.raises(ValueError, match=f"has {next(iter(wrong))}="):
            read_preprocess(settings | wrong, SAM_EVAL)


@pytest.mark.parametrize("resampling", ["pillow", "torchvision"])
@pytest.mark.parametrize("crop_mode", ["squash", "center", "pad"])
def test_preprocessing_is_saved_and_read_again(resampling: str, crop_mode: str, tmp_path: Path) -> None:
    crop_pct = 1.0 if crop_mode == "pad" else 32 / 40
    preprocess = Preprocess((32, 32), crop_pct, crop_mode, crop_rounding="down", resampling=resampling)
    assert read_preprocess(write_preprocess(preprocess), VIT_EVAL) == preprocess
    backbone = tiny_vit()
    backbone.preprocess = preprocess
    save_pretrained(backbone, tmp_path, "ViTModel")
    back = load_backbone(tmp_path).preprocess
    assert back == preprocess
    saved = AutoImageProcessor.from_pretrained(tmp_path, backend="pil" if resampling == "pillow" else "torchvision")
    for photo in PHOTOS:
        want = saved(photo, return_tensors="pt")["pixel_values"][0]
        assert (back(photo) - want).abs().max() < (0.6 / 255 / 0.224 if crop_mode == "pad" else 1e-5)


@pytest.mark.slow  # a process of its own
def test_an_unknown_resampling_is_refused() -> None:
    code = "import vitbackbone; vitbackbone.Preprocess(resampling='opencv')"  # here, types are checked before
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "unknown resampling: 'opencv'; want one of pillow, torchvision" in done.stderr
