"""`preprocessor_config.json` is followed as transformers follows it, or refused by name."""

import json
from pathlib import Path

import pytest
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.checkpoints.names import edit
from tests.checkpoints.sampling import covering
from tests.helpers import photo
from vitbackbone import (
    load_backbone,
)
from vitbackbone.checkpoints.huggingface import VIT_EVAL, read_preprocess
from vitbackbone.checkpoints.zoo import ZOO
from vitbackbone.checkpoints.zoo.pathology import HOPTIMUS_MEAN
from vitbackbone.images.preprocess import CLIP_MEAN, HALF, IMAGENET_MEAN


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("preprocessor_config.json", {"size": {"shortest_edge": 64}, "do_center_crop": False}, "crops nothing"),
        ("preprocessor_config.json", {"size": {"longest_edge": 64}}, "size=.*gives every photo its own size"),
        ("preprocessor_config.json", {"size": {"max_height": 64}}, "size="),
        ("preprocessor_config.json", {"image_mean": "0.5"}, "image_mean='0.5'"),
    ],
)
def test_a_processor_that_cannot_be_followed_is_refused(
    directory: Path, file: str, settings: dict[str, object], message: str
) -> None:
    (directory / file).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        load_backbone(directory)


def test_the_image_processor_inside_of_another_is_read(directory: Path) -> None:
    inside = {"size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 64}, "do_center_crop": True}
    (directory / "processor_config.json").write_text(json.dumps({"image_processor": inside, "tokenizer": {}}))
    preprocess = load_backbone(directory).preprocess
    assert (preprocess.image_size, preprocess.crop_pct) == ((64, 64), 0.8)


# The files that the repositories publish, without their descriptive fields
PROCESSORS = {
    "google/vit-base-patch16-224": (
        {
            "do_normalize": True,
            "do_resize": True,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "resample": 2,
            "size": 224,
        },
        ViTImageProcessorPil,
    ),
    "facebook/deit-base-distilled-patch16-224": (
        {
            "crop_size": 224,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "resample": 3,
            "size": 256,
        },
        DeiTImageProcessorPil,
    ),
    "facebook/dinov2-base": (
        {
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "rescale_factor": 0.00392156862745098,
            "resample": 3,
            "size": {"shortest_edge": 256},
        },
        BitImageProcessorPil,
    ),
}


@pytest.mark.parametrize(("size", "name"), covering([(259, 400), (90, 141), (640, 427), (256, 256)], [*PROCESSORS]))
def test_published_processors_equal_transformers_and_the_zoo(name: str, size: tuple[int, int]) -> None:
    settings, processor = PROCESSORS[name]
    ours = read_preprocess(settings, ZOO[f"hf:{name}"].preprocess)
    assert ours == ZOO[f"hf:{name}"].preprocess
    theirs = processor(**settings)(photo(*size), return_tensors="pt")["pixel_values"][0]
    assert (ours(photo(*size)) - theirs).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "check"),
    [
        ({"size": {"height": 48, "width": 32}}, lambda p: p.view((300, 600)).resized == (48, 32)),
        ({"size": [48, 32]}, lambda p: p.view((300, 600)).size == (48, 32)),
        ({"size": 400, "crop_size": 224, "do_center_crop": True}, lambda p: p.view((9, 9)).resized == (400, 400)),
        (
            {"size": {"shortest_edge": 450}, "crop_size": 384, "do_center_crop": True},
            lambda p: p.scaled((384, 384)) == (450, 450),
        ),
        ({"do_normalize": False}, lambda p: (p.mean, p.std) == ((0, 0, 0), (1, 1, 1))),
        ({"image_mean": None, "resample": None}, lambda p: p == VIT_EVAL),
        ({}, lambda p: p == VIT_EVAL),
    ],
)
def test_processor_settings_are_followed(settings: dict[str, object], check: object) -> None:
    assert check(read_preprocess(settings, VIT_EVAL))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_resize": False}, "do_resize=False; only True"),
        ({"rescale_factor": 0.0}, "rescale_factor=0.0"),
        ({"resample": 4}, "resample=4"),
        ({"size": 224, "crop_size": 256, "do_center_crop": True}, "crops"),
    ],
)
def test_processor_settings_that_cannot_be_followed_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_preprocess(settings, VIT_EVAL)


@pytest.mark.parametrize("name", [name for name in ZOO if name.startswith("hf:")])
def test_hub_entries_normalise_as_their_family_does(name: str) -> None:
    none = (0, 0, 0)  # TIPSv2 takes values from 0 to 1, and C-RADIO normalises by itself
    half = dict.fromkeys(("hf_siglip", "hf_qwen3_vl", "hf_llama4", "hf_kimi", "hf_sam3"), HALF)
    clip = dict.fromkeys(("hf_clip", "hf_qwen2_vl", "hf_qwen2_5_vl", "hf_pixtral", "hf_mlcd", "hf_mllama"), CLIP_MEAN)
    by_format = {**half, **clip, "hf_tipsv2": none, "hf_radio": none}
    google = name.startswith("hf:google/")
    usual = HOPTIMUS_MEAN if "H-optimus" in name else HALF if google else IMAGENET_MEAN
    assert ZOO[name].preprocess.mean == by_format.get(ZOO[name].format, usual)


@pytest.mark.parametrize(
    "settings", [None, {"do_center_crop": False, "size": {"height": 48, "width": 32}, "resample": 2}]
)
def test_a_directory_brings_its_preprocessing(directory: Path, settings: dict[str, object] | None) -> None:
    if settings:
        (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    preprocess = load_backbone(directory).preprocess
    assert preprocess.view((300, 600)).resized == ((48, 32) if settings else (32, 32))
    assert preprocess.interpolation == "bilinear"


def test_settings_that_older_files_leave_out_are_transformers_defaults(directory: Path) -> None:
    want = load_backbone(directory).config
    edit(
        directory,
        layer_norm_eps=None,
        qkv_bias=None,
        hidden_act=None,
        patch_size=[16, 16],
        image_size=[32, 32],
        id2label=None,
    )
    assert load_backbone(directory).config == want
    edit(directory, patch_size=[16, 8])
    with pytest.raises(ValueError, match="only square patches"):
        load_backbone(directory)
