"""Models by timm's name: their configuration, and their files as parameters."""

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch

from tests.checkpoints.sampling import covering, first_of_each
from tests.helpers import randomise, relative_error
from tests.timm_networks import BACKBONES, images
from vitbackbone import ConversionError, Preprocess
from vitbackbone.checkpoints.rules import convert
from vitbackbone.checkpoints.timm_names import describe_timm, preprocess_of, timm_rules
from vitbackbone.checkpoints.zoo import ADAPTED
from vitbackbone.checkpoints.zoo.timm import TIMM
from vitbackbone.networks.timm.backbone import TimmBackbone, TimmConfig


def test_what_timm_says_of_a_name() -> None:
    entry = describe_timm("swin_tiny_patch4_window7_224.ms_in22k")
    assert entry.config == TimmConfig(
        "swin_tiny_patch4_window7_224",
        (224, 224),
        None,
        (("img_size", (224, 224)), ("strict_img_size", False)),
        windows="sized",
    )
    assert entry.preprocess == Preprocess((224, 224), 0.9, "center", "bicubic")
    assert entry.source == "timm/swin_tiny_patch4_window7_224.ms_in22k"
    assert (entry.licence, entry.num_classes, entry.classifier) == ("mit", 21841, ("head.fc",))
    assert describe_timm("swinv2_tiny_window8_256.ms_in1k").config.windows == "fixed"
    hybrid = describe_timm("vit_small_r26_s32_384.augreg_in21k_ft_in1k").config
    assert hybrid.arguments == (("img_size", (384, 384)), ("dynamic_img_size", True))
    assert (hybrid.size_multiple, hybrid.any_size) == (None, True)
    resnet = describe_timm("resnet50.a1_in1k")
    assert resnet.config == TimmConfig("resnet50", (224, 224))
    assert resnet.classifier == ("fc",)
    assert describe_timm("convnext_tiny.fb_in1k").config == TimmConfig("convnext_tiny", (224, 224))
    mvitv2 = describe_timm("mvitv2_tiny.fb_in1k").config
    assert (mvitv2.rebuild, mvitv2.size_multiple) == (True, 32)
    assert describe_timm("volo_d1_224").preprocess.crop_pct == 0.96
    assert describe_timm("deepseek_vit_412m").preprocess.crop_mode == "border"
    assert describe_timm("resnet10t").config.architecture == "resnet10t"
    assert describe_timm("vit_base_r26_s32_224.untrained").source == ""


@pytest.mark.parametrize("every", covering([7, 1], quick=[7]))
def test_every_pretrained_name_of_timm_is_described_or_refused_with_a_reason(every: int) -> None:
    refused = {}
    for name in timm.list_pretrained()[::every]:
        try:
            entry = describe_timm(name)
        except ValueError as error:
            refused[name] = str(error)
        else:
            assert entry.config.architecture == name.partition(".")[0]
            assert entry.preprocess.image_size == entry.config.image_size
    assert refused == {}


def native_pool(model: Any) -> tuple[str, bool]:
    """How timm pools a ViT, in the words of `ViTConfig`, and whether it norms the pooled vector."""
    if isinstance(model, timm.models.VisionTransformerDistilled):
        return "prefix", False
    if isinstance(model, timm.models.VisionTransformerSAM):
        return "neck", False
    assert not getattr(model, "pool_include_prefix", False)
    pool = {"token": "cls", "avg": "mean", "map": "map"}[model.global_pool]
    return pool, isinstance(model.fc_norm, torch.nn.LayerNorm)


@pytest.mark.parametrize("architecture", sorted({name.partition(".")[0] for name in TIMM}))
def test_a_native_vit_by_timms_name_pools_as_timm(architecture: str) -> None:
    """Without weights or a second block: how it pools is in the configuration."""
    with torch.device("meta"):
        model = timm.create_model(architecture, depth=1)
    for name, entry in TIMM.items():
        if name.partition(".")[0] == architecture:
            assert (entry.config.pool, entry.config.fc_norm) == native_pool(model)


def test_unknown_names_are_refused_with_near_ones() -> None:
    with pytest.raises(ValueError, match="knows no model 'resnet50.a1_in1', did you mean 'resnet50.a1_in1k'"):
        describe_timm("resnet50.a1_in1")
    with pytest.raises(ValueError, match="knows no model 'swin_tiny_patch4_window7'"):
        describe_timm("swin_tiny_patch4_window7")


def test_preprocessing_that_cannot_be_followed_is_refused() -> None:
    cfg = timm.models.get_pretrained_cfg("resnet50.a1_in1k").to_dict()
    assert preprocess_of(cfg) == Preprocess((224, 224), 0.95, "center", "bicubic")
    assert preprocess_of({**cfg, "crop_mode": "border"}).crop_mode == "border"
    with pytest.raises(ValueError, match="crop_mode='spiral' is not supported; want 'center', 'squash' or 'border'"):
        preprocess_of({**cfg, "crop_mode": "spiral"})


@pytest.mark.parametrize("name", ["swin sized", "hybrid", "resnet"])
def test_a_file_of_timm_fills_the_backbone_and_its_head(name: str) -> None:
    backbone = BACKBONES[name]
    config = backbone.config
    entry = describe_timm(config.architecture)
    with torch.inference_mode(False):
        model = timm.create_model(config.architecture, num_classes=5, **dict(config.arguments))
    computed = {key: buffer for key, buffer in model.named_buffers() if buffer is not None}  # as old files have them
    state = {**computed, **model.state_dict(), "layers.0.blocks.1.attn_mask": torch.zeros(1)}
    if name != "swin sized":
        del state["layers.0.blocks.1.attn_mask"]
    parameters = convert(state, timm_rules(backbone, entry.classifier), backbone.state_dict())
    assert parameters.pop("head.weight").shape == (5, backbone.spec.dim)
    parameters.pop("head.bias")
    assert parameters.keys() == backbone.state_dict().keys()
    with pytest.raises(ConversionError, match="no rule of the format knows this key"):
        convert({**state, "other": torch.zeros(1)}, timm_rules(backbone, entry.classifier), backbone.state_dict())


def test_a_convolution_as_classifier_is_a_linear_head() -> None:
    backbone = TimmBackbone(TimmConfig("resnetv2_18", (64, 64), 1))
    model = timm.create_model("resnetv2_18", num_classes=5)
    rules = timm_rules(backbone, describe_timm("resnetv2_18").classifier)
    assert convert(model.state_dict(), rules, backbone.state_dict())["head.weight"].shape == (5, backbone.spec.dim)


@pytest.mark.parametrize("name", covering([*ADAPTED], quick=first_of_each(ADAPTED, lambda name: name.split("_")[0])))
def test_what_a_list_of_models_shows_is_what_timm_says(name: str) -> None:
    side, stride, dim, millions, licence = ADAPTED[name]
    known = describe_timm(name)
    assert (known.config.image_size, known.licence) == ((side, side), licence)
    assert known.source == f"timm/{name}"
    with torch.device("meta"):
        options = {**dict(known.config.arguments), "num_classes": 0}
        model = timm.create_model(known.config.architecture, pretrained=False, **options)
    last = list(model.feature_info)[-1]
    assert (last["reduction"], last["num_chs"]) == (stride, dim)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("name", ["vit_so400m_patch14_siglip_384.webli", "vit_so400m_patch14_siglip_gap_384.webli"])
def test_a_vit_drops_what_fills_no_whole_patch(name: str) -> None:
    """timm runs images of 384 pixels there, and sees 27 patches of 14."""
    architecture, small = name.partition(".")[0], (("embed_dim", 48), ("depth", 1), ("num_heads", 3))
    entry = describe_timm(name)
    assert (entry.config.image_size, entry.preprocess.image_size, entry.preprocess.unseen) == (
        (378, 378),
        (378, 378),
        (6, 6),
    )
    theirs = randomise(timm.create_model(architecture, pretrained=False, num_classes=0, **dict(small))).eval()
    config = replace(entry.config, arguments=(*entry.config.arguments, *small))
    ours = TimmBackbone(config).eval()
    ours.model.load_state_dict(theirs.state_dict())
    x = images(1, 3, 384, 384)
    with torch.inference_mode():
        got, want = ours(x[..., :378, :378]), theirs.forward_features(x)
        assert relative_error(got.tokens, want) < 1e-5
        assert relative_error(got.pooled, theirs.forward_head(want, pre_logits=True)) < 1e-5
