"""Processors that give each photo a size of its own, or cut it into tiles, equal transformers' own on photos."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from vitbackbone import Preprocess, load_backbone
from vitbackbone.checkpoints.huggingface import VIT_EVAL, read_preprocess
from vitbackbone.checkpoints.huggingface.processor_sizes import OWN_SIZES

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8))
SIZES = [(400, 259), (141, 290), (64, 64), (30, 500)]  # (W, H)
# wide, tall, exact, long and thin, smaller than the least
PHOTO_SIZES = [(400, 259), (141, 290), (256, 256), (900, 31), (20, 25)]
PHOTOS = [NOISE.resize(size, Image.Resampling.BICUBIC) for size in PHOTO_SIZES]
PIXTRAL = {"size": {"longest_edge": 128}, "patch_size": {"height": 16, "width": 16}}
KIMI = {"size": {"max_height": 64, "max_width": 64}, "max_patches": 256}
LLAMA4 = {"size": {"height": 48, "width": 48}, "max_patches": 4}
CASES: dict[str, dict[str, Any]] = {
    "PixtralImageProcessor": PIXTRAL,
    "Gemma4ImageProcessor": {"max_soft_tokens": 70},
    "Kimi_K25ImageProcessor": KIMI,
    "Llama4ImageProcessor": LLAMA4,
}


def whole(made: Any, patch: int, size: tuple[int, int]) -> Tensor:
    """Return the photo (3, H, W) of a processor's result: an image, the last tile, or a list of patches."""
    pixels = made["pixel_values"]
    if pixels.ndim == 4 and pixels.shape[-1] != patch:
        return pixels[-1]
    h, w = size[0] // patch, size[1] // patch
    if pixels.ndim == 4:  # (N, 3, p, p)
        return pixels.view(h, w, 3, patch, patch).permute(2, 0, 3, 1, 4).reshape(3, *size)
    return pixels[0, : h * w].view(h, w, patch, patch, 3).permute(4, 0, 2, 1, 3).reshape(3, *size)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_photos_have_the_size_and_the_pixels_of_transformers(name: str, size: tuple[int, int]) -> None:
    photo = NOISE.resize(size, Image.Resampling.BICUBIC)
    processor = getattr(transformers, name)(**CASES[name])
    settings = processor.to_dict()
    ours = read_preprocess(settings, VIT_EVAL, own_network=False)
    got = ours(photo)
    made = processor(photo, return_tensors="pt")
    patch = settings.get("patch_size")
    want = whole(made, patch if isinstance(patch, int) else 0, (got.shape[1], got.shape[2]))
    assert got.shape == want.shape
    level = 1 / 255 / torch.tensor(ours.std).view(3, 1, 1)
    difference = (got - want).abs() / level
    # Pixtral's file may be run with Pillow or torchvision, which differ where a photo is enlarged
    assert difference.mean() < 0.6
    assert difference.max() < (24 if name == "PixtralImageProcessor" else 1.8)


def test_gemma_4_gets_pixels_that_its_network_would_make() -> None:
    """transformers turns pixels from 0 to 1 into -1 to 1 within the network."""
    settings = transformers.Gemma4ImageProcessor(max_soft_tokens=70).to_dict()
    photo = NOISE.resize((96, 96))
    inside, outside = (read_preprocess(settings, VIT_EVAL, own_network=own)(photo) for own in (False, True))
    assert torch.allclose(outside, 2 * inside - 1, atol=1e-6)


def test_idefics_2_is_squashed_to_its_longest_edge() -> None:
    settings = transformers.Idefics2ImageProcessor().to_dict()
    assert read_preprocess(settings, VIT_EVAL).image_size == (980, 980)


def test_means_of_other_channels_are_read() -> None:
    bands = {"image_mean": [0.1, 0.2, 0.3, 0.4], "image_std": [0.5, 0.6, 0.7, 0.8]}
    preprocess = read_preprocess({"image_processor_type": "ViTImageProcessor", **bands}, VIT_EVAL)
    assert preprocess.mean == (0.1, 0.2, 0.3, 0.4)
    assert preprocess.channels == 4


@pytest.mark.parametrize(
    ("name", "settings", "key"),
    [
        ("PixtralImageProcessor", {"size": {"height": 64, "width": 128}}, "size"),
        ("PixtralImageProcessor", {"size": {"longest_edge": "x"}}, "size"),
        ("Gemma4ImageProcessor", {"max_soft_tokens": -1}, "max_soft_tokens"),
        ("Kimi_K25ImageProcessor", {"size": {"max_height": 100, "max_width": 100}}, "size"),
        ("Kimi_K25ImageProcessor", {"max_patches": [1]}, "max_patches"),
        ("Llama4ImageProcessor", {"size": {"shortest_edge": 100}}, "size"),
        ("Idefics2ImageProcessor", {"size": {"shortest_edge": 378, "longest_edge": None}}, "longest_edge"),
        ("Idefics2ImageProcessor", {"size": {"longest_edge": 980}}, "shortest_edge"),
    ],
)
def test_sizes_that_are_not_followed_are_named(name: str, settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"preprocessor_config.json has {key}="):
        read_preprocess({"image_processor_type": name, **settings}, VIT_EVAL)


def image_of(name: str, out: dict[str, Tensor]) -> Tensor:
    """The picture (3, H, W) that the processor has cut into patches."""
    if name == "Siglip2ImageProcessor":
        h, w = out["spatial_shapes"][0].tolist()
        patches = out["pixel_values"][0][: h * w].unflatten(0, (h, w)).unflatten(2, (16, 16, 3))
        return patches.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)
    if name == "Qwen2VLImageProcessor":
        _, h, w = out["image_grid_thw"][0].tolist()
        patches = out["pixel_values"].reshape(h // 2, w // 2, 2, 2, 3, 2, 14, 14)[:, :, :, :, :, 0]
        return patches.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, h * 14, w * 14)
    return out["pixel_values"][0][-1]  # the whole, after the tiles


@pytest.mark.parametrize(("backend", "resampling"), [("Pil", "pillow"), ("", "torchvision")])
@pytest.mark.parametrize("name", [name for name in OWN_SIZES if name not in CASES])
def test_a_processor_by_its_defaults_is_read(name: str, backend: str, resampling: str) -> None:
    processor = getattr(transformers, name + backend)()
    ours = replace(read_preprocess(processor.to_dict(), VIT_EVAL), resampling=resampling)
    level = 3.01 / 127.5 if "SmolVLM" in name or "Idefics3" in name else 1e-6
    for photo in PHOTOS:
        want, got = image_of(name, processor(photo, return_tensors="pt")), ours(photo)
        assert got.shape == want.shape
        assert (got - want).abs().max() <= level


def test_older_names_of_the_bounds_are_read() -> None:
    settings = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 784, "max_pixels": 28**2 * 4}
    assert read_preprocess(settings, VIT_EVAL).most_pixels == 28**2 * 4
    assert read_preprocess(settings, VIT_EVAL).view((500, 500)).size == (56, 56)
    with pytest.raises(ValueError, match="max_num_patches='many'"):
        read_preprocess({"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": "many"}, VIT_EVAL)


def test_photos_of_any_aspect_go_through_the_backbone_at_once() -> None:
    preprocess = Preprocess((32, 32), 1.0, "patches", multiple=4, most_pixels=32 * 32)
    backbone = load_backbone("nano")
    inputs = [preprocess(photo) for photo in PHOTOS]
    assert len({image.shape for image in inputs}) > 2
    assert all(image.shape[1] % 4 == 0 and image[0].numel() <= 32 * 32 for image in inputs)
    with torch.inference_mode():
        mixed = backbone(inputs)
        for index, image in enumerate(inputs):
            alone = backbone(image[None])
            assert torch.allclose(mixed.image(index).pooled, alone.pooled, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_mode": "patches"}, "room for multiple"),
        ({"crop_mode": "area", "multiple": 0, "most_pixels": 9}, "want at least 1"),
        ({"crop_mode": "center", "multiple": 14}, "belong to crop_mode"),
        ({"crop_mode": "area", "most_pixels": 9, "crop_pct": 0.9}, "crops nothing"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocess(**{"crop_pct": 1.0, **fields})
