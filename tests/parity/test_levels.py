"""Hiera, SAM 2's encoder and DINOv3's ConvNeXt equal transformers and timm, level by level."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from tests.helpers import randomise, relative_error
from tests.oracles.cases import LIMIT, Case, check_parity, images
from tests.oracles.level_networks import (
    CONVNEXT,
    HIERA,
    LEVEL_CASES,
    SAM2,
    convnext_model,
    cropped,
    timm_convnext,
)
from vitbackbone import ConversionError, load_backbone

each = pytest.mark.parametrize("case", LEVEL_CASES, ids=lambda case: case.name)


@each
def test_levels_are_upstreams(case: Case, tmp_path: Path) -> None:
    ours = check_parity(case, tmp_path)
    assert ours.spec.strides == (4, 8, 16, 32)
    assert ours.spec.dims == (16, 32, 64, 128)


@each
def test_odd_sizes_are_upstreams_padded(case: Case, tmp_path: Path) -> None:
    model, size = case.model(), (61, 75)
    case.save(model, tmp_path)
    ours, x = case.load(tmp_path, case.policy), images(size, 2)
    with torch.inference_mode():
        want = case.run(model, F.pad(x, (0, 21, 0, 3)), list(range(4)))
        for layer, features in enumerate(ours.forward_layers(x, range(4), norm=False)):
            tokens = cropped(want.layers[layer], ours.spec.strides[layer], size)
            assert relative_error(features.tokens, tokens) <= LIMIT


def test_dinov3s_convnext_is_timms(tmp_path: Path) -> None:
    model, x = convnext_model(), images((64, 96), 2)
    model.save_pretrained(tmp_path)
    network, ours = timm_convnext(model), load_backbone(tmp_path)
    with torch.inference_mode():
        assert relative_error(ours(x).pooled, network(x)) <= LIMIT
        levels = network.forward_intermediates(x, intermediates_only=True)
        for features, level in zip(ours.forward_layers(x, range(4), norm=False), levels, strict=True):
            assert relative_error(features.patches, level) <= LIMIT


WHOLE = {
    "HieraBackbone": (transformers.HieraConfig, HIERA),
    "HieraForPreTraining": (
        transformers.HieraConfig,
        {**HIERA, "decoder_depth": 1, "decoder_hidden_size": 16, "decoder_num_heads": 2},
    ),
    "HieraForImageClassification": (transformers.HieraConfig, {**HIERA, "num_labels": 3}),
    "DINOv3ConvNextBackbone": (transformers.DINOv3ConvNextConfig, CONVNEXT),
}


@pytest.mark.parametrize("name", WHOLE)
def test_classes_around_the_network(name: str, tmp_path: Path) -> None:
    config, settings = WHOLE[name]
    model = randomise(getattr(transformers, name)(config(**settings)))
    model.save_pretrained(tmp_path)
    ours, x = load_backbone(tmp_path), images((64, 64), 2)
    with torch.inference_mode():
        if name == "HieraBackbone":  # whose maps have a norm each
            want = model(x).feature_maps[-1].flatten(2).mT
        elif name.startswith("Hiera"):
            plain = transformers.HieraModel(config(**HIERA), add_pooling_layer=False).eval()
            state = {key.removeprefix("hiera."): value for key, value in model.state_dict().items()}
            assert not plain.load_state_dict(state, strict=False).missing_keys
            want = plain(x, output_hidden_states=True).reshaped_hidden_states[-1].flatten(1, 2)
        else:
            want = model(x, output_hidden_states=True).hidden_states[-1].flatten(2).mT
        assert not ours.spec.has_norm
        assert relative_error(ours(x).tokens, want) <= LIMIT


def sam2_model(**pyramid: object) -> torch.nn.Module:
    sam2 = import_module("transformers.models.sam2.modeling_sam2")
    backbone = sam2.Sam2HieraDetModel.config_class(**SAM2).to_dict()
    sizes = {"backbone_channel_list": [128, 64, 32, 16], "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
    kind = sam2.Sam2VisionModel
    return randomise(kind(kind.config_class(backbone_config=backbone, fpn_hidden_size=32, **sizes, **pyramid)))


PYRAMIDS = (
    {},
    pytest.param({"num_feature_levels": 4, "fpn_top_down_levels": [0, 1, 3]}, marks=pytest.mark.slow),
    pytest.param({"num_feature_levels": 2}, marks=pytest.mark.slow),
)


@pytest.mark.parametrize("pyramid", PYRAMIDS)
def test_the_layers_of_a_pyramid_are_sam_2s(pyramid: dict[str, object], tmp_path: Path) -> None:
    model = sam2_model(**pyramid)
    model.save_pretrained(tmp_path)
    ours = load_backbone(tmp_path, adaptor="fpn")
    count = model.num_feature_levels
    assert (ours.spec.strides, ours.spec.dim) == ((4, 8, 16, 32)[:count], 32)
    for size, padding in (((96, 64), (0, 0, 0, 0)), ((61, 75), (0, 21, 0, 3))):
        x = images(size, 2)
        with torch.inference_mode():
            want = model(F.pad(x, padding)).fpn_hidden_states
            found = ours.forward_layers(x, range(count), norm=False)
            for features, level, stride in zip(found, want, ours.spec.strides, strict=True):
                h, w = (-(-side // stride) for side in size)
                assert relative_error(features.patches, level[:, :, :h, :w]) <= LIMIT
            assert torch.equal(ours(x).patches, found[-1].patches)


@pytest.mark.slow
def test_a_pyramid_needs_all_its_tensors(tmp_path: Path) -> None:
    sam2_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({key: t for key, t in load_file(file).items() if key != "neck.convs.1.bias"}, file)
    with pytest.raises(ConversionError, match="laterals.2.bias is missing"):
        load_backbone(tmp_path, adaptor="fpn")
    with pytest.raises(ValueError, match="adaptor='clip'.*'fpn' of a SAM 2"):
        load_backbone(tmp_path, adaptor="clip")


def test_the_encoder_of_a_whole_sam_2_is_read(tmp_path: Path) -> None:
    model = sam2_model()
    model.save_pretrained(tmp_path)
    ours, x = load_backbone(tmp_path), images((96, 64), 2)
    with torch.inference_mode():
        want = model.backbone(x).intermediate_hidden_states
        for features, level in zip(ours.forward_layers(x, range(4), norm=False), want, strict=True):
            assert relative_error(features.tokens, level.flatten(1, 2)) <= LIMIT
