"""SAM 3's feature pyramid equals transformers', with every parameter randomised."""

import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from tests.helpers import randomise, relative_error
from tests.oracles.cases import images
from vitbackbone import ConversionError, load_backbone

LIMIT = 1e-5
TOWER = {
    **{"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96},
    **{"window_size": 3, "global_attn_indexes": [1]},
}


def model(patch: int, **settings: object) -> Any:
    sam3 = import_module("transformers.models.sam3.modeling_sam3")
    tower = sam3.Sam3ViTModel.config_class(
        **TOWER, patch_size=patch, image_size=4 * patch, pretrain_image_size=3 * patch
    )
    kind = sam3.Sam3VisionModel
    return randomise(kind(kind.config_class(backbone_config=tower.to_dict(), fpn_hidden_size=32, **settings)))


@pytest.mark.parametrize(
    ("patch", "settings", "strides"),
    [
        (14, {}, {1: 7, 2: 14, 3: 28}),
        pytest.param(16, {}, {0: 4, 1: 8, 2: 16, 3: 32}, marks=pytest.mark.slow),
        pytest.param(14, {"scale_factors": [0.5, 2.0]}, {1: 7, 0: 28}, marks=pytest.mark.slow),
    ],
)
def test_the_layers_are_the_maps_of_whole_pixels(
    patch: int, settings: dict[str, object], strides: dict[int, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = model(patch, **settings)
    theirs.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        ours = load_backbone(tmp_path, adaptor="fpn")
    assert (ours.spec.strides, ours.spec.dim, ours.spec.has_cls) == (tuple(strides.values()), 32, False)
    assert ("left out the map of 3.5 pixels a patch" in caplog.text) == (patch == 14 and not settings)
    x = images((4 * patch, 4 * patch), 2)
    with torch.inference_mode():
        want = theirs(x).fpn_hidden_states
        for features, level in zip(ours.forward_layers(x, range(len(strides)), norm=False), strides, strict=True):
            assert relative_error(features.patches, want[level]) <= LIMIT
            assert relative_error(features.pooled, want[level].mean((2, 3))) <= LIMIT


@pytest.mark.parametrize("size", [pytest.param((84, 56), marks=pytest.mark.slow), (61, 43)])
def test_other_sizes_are_the_same_layers_over_the_encoder(size: tuple[int, int], tmp_path: Path) -> None:
    """transformers runs its encoder at one size alone. Its pyramid takes any map, and cuts an odd number of patches."""
    theirs = model(14)
    theirs.save_pretrained(tmp_path)
    ours, x = load_backbone(tmp_path, adaptor="fpn"), images(size)
    with torch.inference_mode():
        layer = ours.backbone(x).patches
        even = F.pad(layer, (0, layer.shape[3] % 2, 0, layer.shape[2] % 2), value=-torch.inf)
        last = theirs.neck.fpn_layers[3]
        want = [*theirs.neck(layer)[0][1:3], last.proj2(last.proj1(F.max_pool2d(even, 2)))]
        for features, level in zip(ours.forward_layers(x, range(3), norm=False), want, strict=True):
            h, w = (-(-side // features.geometry.stride) for side in size)
            assert relative_error(features.patches, level[:, :, :h, :w]) <= LIMIT
        assert torch.equal(ours([x[0]]).patches, ours(x).patches)


@pytest.mark.slow
def test_a_pyramid_needs_all_its_tensors_once(tmp_path: Path) -> None:
    model(14).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    save_file({key: t for key, t in state.items() if key != "neck.fpn_layers.2.proj1.bias"}, file)
    with pytest.raises(ConversionError, match=r"1\.proj1\.bias is missing"):
        load_backbone(tmp_path, adaptor="fpn")
    again = {f"tracker.{key}": t.clone() for key, t in state.items() if key.startswith("neck.")}
    save_file({**state, **again}, file)
    with pytest.raises(ConversionError, match=r"2 pyramids: neck\.fpn_layers\., tracker\.neck\.fpn_layers\."):
        load_backbone(tmp_path, adaptor="fpn")
