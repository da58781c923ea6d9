"""DPT against transformers' modules, which have the same formula, with their weights."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DPTConfig
from transformers.models.dpt.modeling_dpt import DPTDepthEstimationHead, DPTNeck, DPTSemanticSegmentationHead

from heads import attach, create_head
from heads.dpt import Decoder
from tests.helpers import randomise, relative_error, tiny_vit
from vitbackbone import Features

WIDTHS = [2, 4, 8, 16]
CONFIG = DPTConfig(
    hidden_size=16,
    num_hidden_layers=4,
    num_attention_heads=2,
    neck_hidden_sizes=WIDTHS,
    neck_ignore_stages=[],
    fusion_hidden_size=256,  # the width that transformers' extra projection has
    use_bias_in_fusion_residual=False,
    add_projection=True,
    num_labels=3,
)
SIZES = [(32, 48), (24, 40), (8, 8), (29, 61)]


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def copied(decoder: Decoder, neck: nn.Module) -> None:
    stage = neck.reassemble_stage
    for i in range(4):
        if decoder.readouts is not None:
            decoder.readouts[i].load_state_dict(stage.readout_projects[i][0].state_dict())
        decoder.projections[i].load_state_dict(stage.layers[i].projection.state_dict())
        decoder.resizers[i].load_state_dict(stage.layers[i].resize.state_dict())
        decoder.convs[i].load_state_dict(neck.convs[i].state_dict())
        ours, theirs = decoder.fusions[i], neck.fusion_stage.layers[3 - i]
        ours.project.load_state_dict(theirs.projection.state_dict())
        pairs = [(ours.out, theirs.residual_layer2)]
        if ours.residual is not None:
            pairs.append((ours.residual, theirs.residual_layer1))
        for residual, layer in pairs:
            residual.conv1.load_state_dict(layer.convolution1.state_dict())
            residual.conv2.load_state_dict(layer.convolution2.state_dict())


def fused(neck: nn.Module, features: tuple[Features, ...]) -> list[Tensor]:
    tokens = [torch.cat([each.cls[:, None], each.tokens], dim=1) for each in features]
    return neck(tokens, *features[0].grid)


def enlarged(maps: Tensor, features: tuple[Features, ...]) -> Tensor:
    geometry = features[0].geometry
    height, width = geometry.sizes[0]
    return F.interpolate(maps, geometry.padded_size, mode="bilinear")[:, :, :height, :width]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("readout", ["project", "ignore"])
def test_segmentation_is_that_of_transformers(size: tuple[int, int], readout: str) -> None:
    backbone = tiny_vit(depth=4, num_registers=2)
    head = randomise(create_head("dpt", backbone.spec, num_classes=3, readout=readout))
    config = DPTConfig(**{**CONFIG.to_dict(), "readout_type": readout})
    neck, oracle = randomise(DPTNeck(config), seed=1), randomise(DPTSemanticSegmentationHead(config), seed=2)
    copied(head.decoder, neck)
    for ours, index in ((head.conv, 0), (head.bn, 1), (head.classifier, 4)):
        ours.load_state_dict(oracle.head[index].state_dict())
    x = images(2, 3, *size)
    with torch.inference_mode():
        features = backbone.forward_layers(x, [0, 1, 2, 3], norm=False)
        expected = enlarged(oracle(fused(neck, features)), features)
        assert relative_error(attach(backbone, {"it": head})(x)["it"], expected) < 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_depth_is_that_of_transformers_above_the_least_depth(size: tuple[int, int]) -> None:
    backbone = tiny_vit(depth=4)
    head = randomise(create_head("dpt_depth", backbone.spec, min_depth=0.25))
    neck, oracle = randomise(DPTNeck(CONFIG), seed=1), randomise(DPTDepthEstimationHead(CONFIG), seed=3)
    nn.init.constant_(oracle.head[4].bias, -1.0)
    copied(head.decoder, neck)
    pairs = ((head.project, oracle.projection), (head.conv1, oracle.head[0]), (head.conv2, oracle.head[2]))
    for ours, theirs in (*pairs, (head.depth, oracle.head[4])):
        ours.load_state_dict(theirs.state_dict())
    x = images(2, 3, *size)
    with torch.inference_mode():
        features = backbone.forward_layers(x, [0, 1, 2, 3], norm=False)
        raw = oracle(fused(neck, features))[:, None]
        assert 0 < raw.count_nonzero() < raw.numel()  # the last ReLU does something
        found = attach(backbone, {"it": head})(x)["it"]
    assert relative_error(found, enlarged(raw + 0.25, features)) < 1e-5


def test_the_layers_are_dinov2s() -> None:
    for depth, layers in {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}.items():
        assert create_head("dpt_depth", tiny_vit(depth=depth).spec, channels=8).layers == layers


def test_a_new_depth_head_can_learn() -> None:
    backbone = tiny_vit(depth=4)
    for seed in range(8):
        torch.manual_seed(seed)
        head = create_head("dpt_depth", backbone.spec, channels=8)
        head(*backbone.forward_layers(images(1, 3, 32, 32), head.layers, norm=False)).mean().backward()
        assert head.decoder.projections[0].weight.grad.any()


def test_wrong_options_are_refused() -> None:
    spec = tiny_vit(depth=4).spec
    with pytest.raises(ValueError, match=r"readout='cat'; want 'project' or 'ignore'"):
        create_head("dpt", spec, num_classes=3, readout="cat")
    with pytest.raises(ValueError, match=r"layers \[3\] of tiny have strides \[8\] and widths \[16\]; want four"):
        create_head("dpt", spec, num_classes=3, layers="last")
    with pytest.raises(ValueError, match=r"widths \[4, 4, 4, 4\]; want four of one stride, at least 8 wide"):
        create_head("dpt_depth", tiny_vit(depth=4, dim=4).spec)
