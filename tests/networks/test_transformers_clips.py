"""Video encoders of transformers: maps with an axis of time, in the order of the clip, equal to the encoder's own."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from tests.helpers import randomise, relative_error, save_photo
from vitbackbone import BackboneModule, load_backbone

WIDTH, SIDE, PATCH = 24, 32, 8
SHARED = {
    **{"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40},
    **{"image_size": SIDE, "num_frames": 4},
}


def by_time(tokens: Tensor, steps: int, grid: tuple[int, int]) -> Tensor:
    """(B, (t h w), D) to (B, D, t, h, w)"""
    return tokens.unflatten(1, (steps, *grid)).movedim(-1, 1)


def by_place(tokens: Tensor, steps: int, grid: tuple[int, int]) -> Tensor:
    """(B, (h w t), D) to (B, D, t, h, w)"""
    return tokens.unflatten(1, (*grid, steps)).permute(0, 4, 3, 1, 2)


@dataclass(frozen=True)
class Family:
    config: str
    model: str
    settings: dict[str, Any]
    steps: int
    prefix: int
    order: Callable[[Tensor, int, tuple[int, int]], Tensor] = by_time
    normed: bool = True
    layers: int = 3
    argument: str = "pixel_values"
    sizes: tuple[tuple[int, int], ...] = ()  # others than its own
    options: dict[str, Any] = field(default_factory=dict)
    apart: bool = False  # whether each frame has tokens of its own
    flat: bool = False  # whether the frames are the images of a batch

    def whole(self, tokens: Tensor) -> Tensor:
        """Return the tokens of each clip in one row: those beside the patches first."""
        if not self.apart:
            return tokens
        frames = tokens.unflatten(0, (-1, 4))
        return torch.cat([frames[:, :, 0], frames[:, :, 1:].flatten(1, 2)], dim=1)


TUBE = {"tubelet_size": 2, "patch_size": PATCH}
FAMILIES = {
    "videomae": Family("VideoMAEConfig", "VideoMAEModel", {**TUBE, "use_mean_pooling": False}, 2, 0),
    "videomae that pools": Family("VideoMAEConfig", "VideoMAEModel", TUBE, 2, 0, normed=False),
    "vivit": Family("VivitConfig", "VivitModel", {"tubelet_size": [2, PATCH, PATCH]}, 2, 1),
    "timesformer": Family(
        "TimesformerConfig", "TimesformerModel", {"patch_size": PATCH}, 4, 1, by_place, sizes=((48, 32), (24, 32))
    ),
    "timesformer, joint": Family(
        "TimesformerConfig",
        "TimesformerModel",
        {"patch_size": PATCH, "attention_type": "joint_space_time"},
        4,
        1,
        by_place,
        sizes=((40, 56),),
    ),
    "timesformer, apart": Family(
        "TimesformerConfig",
        "TimesformerModel",
        {"patch_size": PATCH, "attention_type": "space_only"},
        4,
        4,
        apart=True,
    ),
    "x-clip": Family(
        "XCLIPVisionConfig",
        "XCLIPVisionModel",
        {"patch_size": PATCH},
        4,
        4,
        apart=True,
        flat=True,
        normed=False,
        sizes=((48, 32),),
        options={"interpolate_pos_encoding": True},
    ),
    "videoprism": Family(
        "VideoPrismVisionConfig",
        "VideoPrismVisionModel",
        {"tubelet_size": [1, PATCH, PATCH], "num_spatial_layers": 2, "num_temporal_layers": 1},
        4,
        0,
        normed=False,
        layers=1,
        argument="pixel_values_videos",
        sizes=((48, 32), (24, 56)),
        options={"interpolate_pos_encoding": True},
    ),
}
SLOW = {"videomae that pools", "timesformer, joint", "timesformer, apart"}
each = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in FAMILIES]
)


def clips(size: tuple[int, int], frames: int = 4) -> Tensor:
    return torch.randn(2, frames, 3, *size, generator=torch.Generator().manual_seed(size[0]))


def made(name: str) -> nn.Module:
    row = FAMILIES[name]
    config = getattr(transformers, row.config)(**{**SHARED, **row.settings})
    return randomise(getattr(transformers, row.model)(config))


def loaded(name: str, folder: Path) -> tuple[nn.Module, BackboneModule]:
    model = made(name)
    model.save_pretrained(folder)
    return model, load_backbone(folder)


@each
def test_maps_are_the_encoders_in_the_order_of_the_clip(name: str, tmp_path: Path) -> None:
    row, (model, ours) = FAMILIES[name], loaded(name, tmp_path)
    assert ours.spec.tubelet == 4 // row.steps
    assert (ours.spec.depth, ours.spec.num_prefix) == (row.layers, row.prefix)
    assert ours.spec.has_norm == row.normed
    for size in ((SIDE, SIDE), *row.sizes):
        x, grid = clips(size), (size[0] // PATCH, size[1] // PATCH)
        options = {} if size == (SIDE, SIDE) else row.options
        with torch.inference_mode():
            given = x.flatten(0, 1) if row.flat else x
            out = model(**{row.argument: given}, output_hidden_states=True, **options)
            got = ours(x)
        last = row.whole(out.last_hidden_state)
        want = row.order(last[:, row.prefix :], row.steps, grid)
        assert row.prefix < 2 or relative_error(got.registers, last[:, : row.prefix]) <= 1e-5
        assert relative_error(got.patches, want) <= 1e-5
        assert (got.cls is not None) == (row.prefix == 1)
        if got.cls is not None:
            assert relative_error(got.cls, out.last_hidden_state[:, 0]) <= 1e-5
        pooled = None if row.apart else getattr(out, "pooler_output", None)
        wanted = want.mean(dim=(2, 3, 4)) if got.cls is None else out.last_hidden_state[:, 0]
        assert relative_error(got.pooled, wanted if pooled is None else pooled) <= 1e-5
        if row.layers == 1:
            continue
        for layer, features in enumerate(ours.forward_layers(x, [0, 1, 2], norm=False)):
            states = row.whole(out.hidden_states[layer + 1])[:, row.prefix :]
            assert relative_error(features.patches, row.order(states, row.steps, grid)) <= 1e-5
        if row.normed:
            (normed,) = ours.forward_layers(x, [1])
            with torch.inference_mode():
                states = row.whole(model.layernorm(out.hidden_states[2]))[:, row.prefix :]
            assert relative_error(normed.patches, row.order(states, row.steps, grid)) <= 1e-5


@each
def test_an_image_is_a_still_clip(name: str, tmp_path: Path) -> None:
    _, ours = loaded(name, tmp_path)
    x = clips((SIDE, SIDE))[:, 0]
    with torch.inference_mode():
        still = ours(x[:, None].expand(-1, 4, -1, -1, -1))
        image = ours(x)
        several = ours([x[0], x[1]])
    assert relative_error(image.patches, still.patches.mean(dim=2)) <= 1e-5
    assert relative_error(image.pooled, still.pooled) <= 1e-5
    assert relative_error(several.patches, image.patches) <= 1e-5


def test_what_an_encoder_does_not_take_is_named(tmp_path: Path) -> None:
    _, ours = loaded("videomae", tmp_path)
    with pytest.raises(ValueError, match="clips have 6 frames; .* takes 4"):
        ours(clips((SIDE, SIDE), 6))
    with pytest.raises(ValueError, match="accepts only frames of 32 x 32"):
        ours(clips((SIDE, 48)))
    with pytest.raises(ValueError, match="no attention maps"):
        ours.attention(clips((SIDE, SIDE)), [0])
    padded = clips((SIDE, SIDE))
    padded[..., 27:] = 0
    with torch.inference_mode():
        assert relative_error(ours(padded[..., :27]).patches, ours(padded).patches) <= 1e-5


def test_classes_around_the_encoder_load(tmp_path: Path) -> None:
    row = FAMILIES["videomae that pools"]
    model = randomise(transformers.VideoMAEForVideoClassification(transformers.VideoMAEConfig(**{**SHARED, **TUBE})))
    model.save_pretrained(tmp_path)
    x = clips((SIDE, SIDE))
    with torch.inference_mode():
        want = row.order(model.videomae(x).last_hidden_state, row.steps, (4, 4))
        assert relative_error(load_backbone(tmp_path)(x).patches, want) <= 1e-5


@pytest.mark.parametrize("kind", ["VideoMAEImageProcessor", "VivitImageProcessor"])
def test_frames_are_processed_as_in_transformers(kind: str, tmp_path: Path) -> None:
    name = {"VideoMAEImageProcessor": "videomae", "VivitImageProcessor": "vivit"}[kind]
    made(name).save_pretrained(tmp_path)
    own = {"size": {"shortest_edge": 40}, "crop_size": {"height": SIDE, "width": SIDE}, "image_mean": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind, **own}))
    ours, file = load_backbone(tmp_path), save_photo(tmp_path / "photo.png", 60, 80)
    assert ours.preprocess.image_size == (SIDE, SIDE)
    from PIL import Image

    with Image.open(file) as photo:
        given = [photo.convert("RGB")]
        processor = getattr(transformers, f"{kind}Pil" if kind.startswith("VideoMAE") else kind)(**own)
        want = processor(given, return_tensors="pt").pixel_values
    got = ours.preprocess(file)
    assert (got - want.reshape(got.shape)).abs().max() <= 0.03  # a level of 255, over the std
