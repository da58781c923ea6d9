"""`pooled` of each module of timm: what timm's own classifier reads, not a substitute computed here."""

from collections.abc import Iterator

import pytest
import timm
import torch
from torch import Tensor

from heads import Head, Needs, create_head
from heads.cameras import CameraEncoder
from tests.helpers import cases, randomise, relative_error
from tests.timm_networks import BACKBONES, TOLERANCE, images
from vitbackbone import BackboneModule, BackboneSpec, Features, load_backbone
from vitbackbone.networks.timm.backbone import TimmBackbone, TimmConfig

# One architecture of each module of timm, among the smallest. Where a module has several heads, one of each.
ARCHITECTURES = """
beit: beit_base_patch16_224
byoanet: botnet26t_256, halonet26t
byobnet: mobileone_s0, resnet50_clip
cait: cait_xxs24_224
coat: coat_lite_tiny, coat_tiny
convit: convit_tiny
convmixer: convmixer_768_32
convnext: convnext_atto
cpubone: cpubone_nano
crossvit: crossvit_9_240
csatv2: csatv2
cspnet: cs3darknet_focus_s
cspnext: cspnext_tiny
davit: davit_tiny
deit: deit_tiny_patch16_224, deit_tiny_distilled_patch16_224
densenet: densenet121
dla: dla46_c
dpn: dpn48b
edgenext: edgenext_xx_small
efficientformer: efficientformer_l1
efficientformer_v2: efficientformerv2_s0
efficientnet: tinynet_e, efficientnet_b1
efficientvim: efficientvim_m1
efficientvit_mit: efficientvit_b0
efficientvit_msra: efficientvit_m0
eva: eva02_tiny_patch14_224, vit_small_patch16_dinov3, vit_pe_core_tiny_patch16_384
fasternet: fasternet_t0
fastvit: fastvit_t8
focalnet: focalnet_tiny_srf
gcvit: gcvit_xxtiny
ghostnet: ghostnet_050
hardcorenas: hardcorenas_a
hgnet: hgnetv2_b0
hiera: hiera_tiny_224
hieradet_sam2: sam2_hiera_tiny
hrnet: hrnet_w18_small
iformer: iformer_t
inception_next: inception_next_atto
lcnetv2: lcnetv2_small
levit: levit_128s
lowformer: lowformer_b0
mambaout: mambaout_femto
maxxvit: coatnet_pico_rw_224, maxvit_pico_rw_256
metaformer: poolformer_s12, caformer_s18
mlp_mixer: gmlp_ti16_224
mobilenetv3: lcnet_035, mobilenetv3_small_050, mobilenetv4_conv_small_035
mobilevit: mobilevit_xxs, mobilevitv2_050
mvitv2: mvitv2_tiny
nest: nest_tiny
nextvit: nextvit_small
nfnet: nf_regnet_b0
pit: pit_xs_224, pit_ti_distilled_224
pvt_v2: pvt_v2_b0
rdnet: rdnet_tiny
regnet: regnetx_002
repghost: repghostnet_050
repvit: repvit_m0_9
res2net: res2net50_48w_2s
resnest: resnest14d
resnet: resnet10t
resnetv2: resnetv2_18
rexnet: rexnetr_200
selecsls: selecsls42
senet: legacy_seresnet18
sequencer: sequencer2d_s
shvit: shvit_s1
sknet: skresnet18
starnet: starnet_s050
swiftformer: swiftformer_xs
swin_transformer: swin_tiny_patch4_window7_224
swin_transformer_v2: swinv2_tiny_window8_256
swin_transformer_v2_cr: swinv2_cr_tiny_224
tiny_vit: tiny_vit_5m_224
tnt: tnt_s_patch16_224
tresnet: tresnet_m
twins: twins_svt_small
vision_transformer: vit_tiny_patch16_224, test_vit4
vision_transformer_hybrid: vit_tiny_r_s16_p8_224
vision_transformer_relpos: vit_relpos_small_patch16_224
visformer: visformer_tiny
volo: volo_d1_224
vovnet: ese_vovnet19b_slim_dw
xception: legacy_xception
xception_aligned: xception41
xcit: xcit_nano_12_p16_224
"""
MODULES = {
    module: names.split(", ") for module, names in (line.split(": ") for line in ARCHITECTURES.strip().splitlines())
}
# One of each way to pool: CLS, layers between the last map and the classifier, a mean of tokens, a mean of the map.
QUICK = {"deit_tiny_distilled_patch16_224", "lcnet_035", "resnet10t", "swin_tiny_patch4_window7_224", "crossvit_9_240"}
# Nothing of these modules is small enough for each run of the tests.
LARGE = ("deepseek_vit", "gemma4_vit", "mobilenetv5", "nasnet", "pnasnet", "qwen3_vit", "vgg", "vision_transformer_sam")
LARGE += ("naflexvit", "vitamin")
BORDER = "its layers crop the border of the image"
REFUSED = {"inception_resnet_v2": BORDER, "inception_v3": BORDER, "inception_v4": BORDER}


class PooledTokens(Head):
    """The pooled vector as it is."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec, Needs("last", norm=spec.has_norm))

    def forward(self, features: Features) -> Tensor:
        return features.pooled


def module_of(architecture: str) -> str:
    return timm.models.model_entrypoint(architecture).__module__.rpartition(".")[2]


def loaded(name: str) -> BackboneModule:
    with torch.inference_mode(False):
        return randomise(load_backbone(f"timm:{name}", weights="random"))


def size_of(backbone: BackboneModule) -> tuple[int, int]:
    """The network's own size, or a smaller one for a network that takes any size and has a large one."""
    native = backbone.spec.image_size
    return native if max(native) < 400 or backbone.sizes is None else backbone.sizes.padded((128, 128))


def timms(backbone: BackboneModule, x: Tensor) -> Tensor:
    model = backbone.model
    return model.forward_head(model.forward_features(x), pre_logits=True)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def test_each_module_of_timm_is_here() -> None:
    rows = [name for names in MODULES.values() for name in names]
    assert all(module_of(name) == module for module, names in MODULES.items() for name in names)
    assert {*map(module_of, [*rows, *REFUSED]), *LARGE} == set(timm.list_modules())


@pytest.mark.parametrize("name", cases([name for names in MODULES.values() for name in names], QUICK))
def test_pooled_is_what_timms_classifier_reads(name: str) -> None:
    backbone = loaded(name)
    x = images(2, 3, *size_of(backbone))
    features, want = backbone(x), timms(backbone, x)
    last = {"indices": [backbone.spec.depth - 1], "norm": backbone.spec.has_norm, "intermediates_only": True}
    assert relative_error(features.patches, backbone.model.forward_intermediates(x, **last)[0]) < TOLERANCE
    assert relative_error(features.pooled, want) < TOLERANCE
    assert features.pooled.shape == (2, backbone.spec.pooled_dim)
    assert backbone.spec.pooled_dims[-1] == backbone.spec.pooled_dim
    assert relative_error(features.image(1).pooled, want[1:]) < TOLERANCE
    assert relative_error(backbone([x[1], x[0]]).pooled, want.flip(0)) < TOLERANCE
    (prefix,) = backbone.forward_prefix(x, [-1], norm=backbone.spec.has_norm)
    assert relative_error(prefix.pooled, want) < TOLERANCE


def test_images_of_several_sizes_and_cameras_keep_their_own_vector() -> None:
    """A network whose vector is wider than its last map, through all that takes a batch apart."""
    backbone = loaded("lcnet_035")
    batch = [images(3, 64, 64), images(3, 50, 81, seed=1), images(3, 64, 64, seed=2)]
    want = torch.cat([timms(backbone, image[None]) for image in batch])
    mixed = backbone(batch)
    assert relative_error(mixed.pooled, want) < TOLERANCE
    assert all(relative_error(mixed.image(i).pooled, want[[i]]) < TOLERANCE for i in range(3))
    head = create_head("mlp", backbone.spec, num_classes=2)
    encoder = CameraEncoder({"front": (64, 64)}, backbone, PooledTokens(backbone.spec)).eval()
    present = {"front": torch.tensor([True, False, True])}
    front = torch.stack([batch[0], torch.zeros(3, 64, 64), batch[2]])
    features = encoder.features({"front": front}, present)
    (found,) = features.features["front"]
    assert relative_error(found.pooled, want * torch.tensor([[1.0], [0.0], [1.0]])) < TOLERANCE
    (found,) = features[torch.tensor([2, 0])].features["front"]
    assert relative_error(found.pooled, want[[2, 0]]) < TOLERANCE
    assert head(backbone(batch)).shape == (3, 2)


def test_pooled_of_other_layers_is_cls_or_the_mean_of_the_patches() -> None:
    for name, backbone in BACKBONES.items():
        spec = backbone.spec
        layers = backbone.forward_layers(images(2, 3, 64, 96), range(spec.depth), norm=False)
        for layer, features in enumerate(layers):
            if layer < spec.depth - 1 or spec.has_norm:
                want = features.patches.mean(dim=(2, 3)) if features.cls is None else features.cls
                assert relative_error(features.pooled, want) < TOLERANCE, name
            assert features.pooled.shape[1] == spec.pooled_dims[layer]


@pytest.mark.parametrize("name", cases(REFUSED, {"inception_v3"}))
def test_networks_without_one_map_and_its_tokens_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[name]):
        load_backbone(f"timm:{name}", weights="random")


def test_an_encoder_without_a_head_pools_the_mean_of_its_last_map() -> None:
    """timm's `forward_head` of MobileNetV5's encoder takes no `pre_logits`, because it only raises an error."""
    config = TimmConfig("mobilenetv5_300m_enc", (128, 96), arguments=(("channel_multiplier", 0.05),))
    backbone = randomise(TimmBackbone(config)).eval()
    x = images(1, 3, 128, 96)
    *_, want = backbone.model.forward_intermediates(x, intermediates_only=True)
    assert relative_error(backbone(x).patches, want) < TOLERANCE
    assert relative_error(backbone(x).pooled, want.mean((2, 3))) < TOLERANCE
    with pytest.raises(NotImplementedError):
        backbone.model.forward_head(want)
