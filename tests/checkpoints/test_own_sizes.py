"""The image processors that give every photo a size of its own, equal to those of transformers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from tests.checkpoints.test_processor_sizes import CASES as ELSEWHERE
from vitbackbone import Preprocess, load_backbone
from vitbackbone.checkpoints.huggingface import VIT_EVAL, read_preprocess
from vitbackbone.checkpoints.huggingface.own_sizes import OWN_SIZES

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8))
# wide, tall, exact, long and thin, smaller than the least
SIZES = [(400, 259), (141, 290), (256, 256), (900, 31), (20, 25)]
PHOTOS = [NOISE.resize(size, Image.Resampling.BICUBIC) for size in SIZES]


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
    return out["pixel_values"][0][-1]  # the whole, behind the tiles


@pytest.mark.parametrize(("backend", "resampling"), [("Pil", "pillow"), ("", "torchvision")])
@pytest.mark.parametrize("name", [name for name in OWN_SIZES if name not in ELSEWHERE])
def test_the_processor_is_read(name: str, backend: str, resampling: str) -> None:
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
