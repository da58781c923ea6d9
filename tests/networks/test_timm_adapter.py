"""Networks of timm behind the contract: equal to timm at every size, and all that `Backbone` promises."""

import pickle
import subprocess
import sys

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.helpers import randomise, relative_error
from tests.timm_networks import BACKBONES, STAGES, SWIN, TOLERANCE, images, padded
from vitbackbone import Backbone
from vitbackbone.contract import describe_settings
from vitbackbone.contract.spec import BackboneSpec
from vitbackbone.networks.timm.backbone import TimmBackbone, TimmConfig

AS_TIMM = [name for name, backbone in BACKBONES.items() if backbone.config.windows == "timm"]


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> TimmBackbone:
    return BACKBONES[request.param]


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


# ---- parity with timm -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (160, 96), (90, 71), (20, 24), (5, 3)], ids=str)
@pytest.mark.parametrize("name", AS_TIMM)
def test_equals_timm(name: str, size: tuple[int, int]) -> None:
    backbone = BACKBONES[name]
    model = timm.create_model(backbone.config.architecture, num_classes=0, **dict(backbone.config.arguments)).eval()
    model.load_state_dict(backbone.model.state_dict())
    x = images(2, 3, *size)
    theirs = padded(backbone, x)
    got = backbone.forward_layers(x, range(backbone.spec.depth), norm=False)
    for features, level, expected in zip(
        got, model.feature_info, model.forward_intermediates(theirs, intermediates_only=True), strict=True
    ):
        h, w = -(-size[0] // level["reduction"]), -(-size[1] // level["reduction"])
        assert relative_error(features.patches, expected[:, :, :h, :w]) < TOLERANCE
        assert features.geometry.stride == level["reduction"]
    last = backbone(x)
    whole = model.forward_features(theirs)
    if backbone.spec.has_cls:
        assert relative_error(last.cls, whole[:, 0]) < TOLERANCE
        assert relative_error(last.tokens[:, : last.grid[1]], whole[:, 1 : 1 + last.grid[1]]) < TOLERANCE
    if backbone.strides[-1] >= backbone.sizes.multiple:  # else timm pools patches of padding, too
        assert relative_error(last.pooled, model.forward_head(whole, pre_logits=True)) < TOLERANCE


def test_levels_equal_timms_features_only() -> None:
    config = TimmConfig("resnet18", (64, 64), 1)
    backbone = randomise(TimmBackbone(config))
    model = timm.create_model("resnet18", features_only=True).eval()
    model.load_state_dict(backbone.model.state_dict(), strict=False)
    x = images(1, 3, 70, 53)
    for features, expected in zip(backbone.forward_layers(x, range(5), norm=False), model(x), strict=True):
        assert relative_error(features.patches, expected) < TOLERANCE


def test_a_distillation_token_is_a_register() -> None:
    arguments = (("img_size", (32, 32)), ("embed_dim", 24), ("depth", 2), ("num_heads", 2), ("dynamic_img_size", True))
    backbone = randomise(TimmBackbone(TimmConfig("deit_tiny_distilled_patch16_224", (32, 32), arguments=arguments)))
    features = backbone(images(2, 3, 48, 32))
    tokens = backbone.model.forward_features(images(2, 3, 48, 32))
    assert torch.equal(features.cls, tokens[:, 0])
    assert torch.equal(features.registers, tokens[:, 1:2])
    assert torch.equal(features.tokens, tokens[:, 2:])


# ---- the contract ---------------------------------------------------------------------------------------------------


@settings(max_examples=5, deadline=None)
@given(height=st.integers(1, 100), width=st.integers(1, 100), batch=st.integers(1, 2))
@pytest.mark.parametrize("name", BACKBONES)
def test_any_size_gives_the_shapes_that_the_spec_promises(name: str, height: int, width: int, batch: int) -> None:
    backbone = BACKBONES[name]
    spec = backbone.spec
    layers = backbone.forward_layers(images(batch, 3, height, width), range(spec.depth), norm=False)
    for features, dim, stride in zip(layers, spec.dims, spec.strides, strict=True):
        h, w = -(-height // stride), -(-width // stride)
        assert features.patches.shape == (batch, dim, h, w)
        assert features.grid == (h, w)
        assert features.registers.shape == (batch, spec.num_registers, dim)
        assert (features.cls is not None) == spec.has_cls
        assert features.pooled.shape == (batch, dim)
        assert features.valid.all()
        assert features.geometry.sizes == ((height, width),) * batch
        bottom_right = features.geometry.box(0, h - 1, w - 1)
        assert bottom_right == ((w - 1) * stride, (h - 1) * stride, w * stride, h * stride)
        assert torch.isfinite(features.patches).all()


def test_it_is_a_backbone_and_says_what_it_is(backbone: TimmBackbone) -> None:
    assert isinstance(backbone, Backbone)
    spec = backbone.spec
    assert (spec.dim, spec.stride) == (spec.dims[-1], spec.strides[-1])
    assert len(spec.dims) == len(spec.strides) == spec.depth
    assert spec.settings == describe_settings(backbone.config)
    assert list(backbone.state_dict()) == [f"model.{key}" for key in backbone.model.state_dict()]
    assert spec.image_size == backbone.config.image_size == backbone.preprocess.image_size


def test_specs() -> None:
    def of(name: str) -> tuple[object, ...]:
        s = BACKBONES[name].spec
        return s.dims, s.strides, s.num_heads, s.has_cls, s.has_norm, s.num_registers

    assert of("swin") == ((24, 48), (4, 8), 4, False, True, 0)
    assert of("swinv2 fixed") == ((24, 48), (4, 8), 4, False, True, 0)
    assert of("hybrid") == ((24,) * 3, (32,) * 3, 3, True, True, 0)
    assert of("resnet") == ((64, 64, 128, 256, 512), (2, 4, 8, 16, 32), 0, False, False, 0)


def test_a_spec_fills_in_layers_alike_and_refuses_ones_that_contradict_it() -> None:
    fields = {
        "name": "x", "dim": 8, "depth": 2, "num_heads": 1, "stride": 4, "num_registers": 0, "has_cls": False,
        "has_norm": False, "image_size": (8, 8),
    }  # fmt: skip
    alike = BackboneSpec(**fields)
    assert (alike.dims, alike.strides) == ((8, 8), (4, 4))
    assert BackboneSpec(**fields, dims=(4, 8), strides=(2, 4)).strides == (2, 4)
    for wrong in ({"dims": (8,)}, {"strides": (4, 2)}):
        with pytest.raises(ValueError, match="want 2 values, one for each layer"):
            BackboneSpec(**fields, **wrong)


def test_layers_come_in_the_order_asked_with_duplicates_and_negatives(backbone: TimmBackbone) -> None:
    x = images(2, 3, 64, 72)
    depth = backbone.spec.depth
    asked = [depth - 1, 0, -1, -depth, 1]
    got = backbone.forward_layers(x, asked, norm=False)
    assert len(got) == len(asked)
    for features, layer in zip(got, asked, strict=True):
        (alone,) = backbone.forward_layers(x, [layer], norm=False)
        assert torch.equal(features.patches, alone.patches)
        assert features.geometry.stride == backbone.spec.strides[layer]
    assert torch.equal(got[0].patches, got[2].patches)


def test_nothing_runs_past_the_deepest(backbone: TimmBackbone) -> None:
    ran: list[str] = []
    modules = dict(backbone.model.named_modules())
    levels = [level["module"] for level in backbone.model.feature_info]
    hooks = [modules[level].register_forward_hook(lambda *_, level=level: ran.append(level)) for level in levels]
    try:
        backbone.forward_layers(images(1, 3, 64, 64), [1, 0, 1], norm=False)
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == levels[:2]


def test_norm_means_the_final_norm(backbone: TimmBackbone) -> None:
    x, depth = images(2, 3, 64, 64), backbone.spec.depth
    (raw,) = backbone.forward_layers(x, [-1], norm=False)
    if not backbone.spec.has_norm:
        with pytest.raises(ValueError, match="no final norm to apply; pass norm=False"):
            backbone.forward_layers(x, [-1])
        assert torch.equal(backbone(x).patches, raw.patches)
        return
    (normed,) = backbone.forward_layers(x, [-1])
    assert relative_error(normed.tokens, backbone.model.norm(raw.tokens)) < 1e-6
    assert torch.equal(backbone(x).patches, normed.patches)
    if len(set(backbone.spec.dims)) > 1:
        with pytest.raises(ValueError, match=f"fits only its last layer, {depth - 1}; want norm=False elsewhere"):
            backbone.forward_layers(x, [0, -1])
    else:
        (raw,), (first,) = backbone.forward_layers(x, [0], norm=False), backbone.forward_layers(x, [0])
        assert relative_error(first.cls, backbone.model.norm(raw.cls)) < 1e-6


def test_batch_size_does_not_change_the_features(backbone: TimmBackbone) -> None:
    x = images(3, 3, 72, 60)
    alone = torch.cat([backbone(image[None]).patches for image in x])
    assert relative_error(backbone(x).patches, alone) < TOLERANCE


def test_mixed_sizes_equal_each_image_alone(backbone: TimmBackbone) -> None:
    batch = [images(3, 64, 64), images(3, 33, 130, seed=1), images(3, 90, 18, seed=2)]
    layers = range(backbone.spec.depth)
    for layer, mixed in enumerate(backbone.forward_layers(batch, layers, norm=False)):
        assert mixed.geometry.stride == backbone.spec.strides[layer]
        for i, image in enumerate(batch):
            (one,) = backbone.forward_layers(image[None], [layer], norm=False)
            h, w = one.grid
            assert relative_error(mixed.patches[i, :, :h, :w], one.patches[0]) < TOLERANCE
            assert relative_error(mixed.pooled[i], one.pooled[0]) < TOLERANCE
            assert mixed.valid[i].sum() == h * w


def test_features_travel_without_the_model(backbone: TimmBackbone) -> None:
    features = backbone(images(1, 3, 64, 64))
    data = pickle.dumps(features)
    assert len(data) < 100_000
    assert torch.equal(pickle.loads(data).pooled, features.pooled)  # noqa: S301  # our own bytes


def test_sizes_are_refused_where_the_caller_or_the_network_says_so() -> None:
    strict = TimmBackbone(TimmConfig("resnet10t", (64, 64), 32, indivisible="refuse"))
    with pytest.raises(ValueError, match="33 x 64, which 32 does not divide; resize them to 64 x 64"):
        strict(images(1, 3, 33, 64))
    config = TimmConfig(SWIN.architecture, (64, 64), 4, STAGES, any_size=False)
    native = TimmBackbone(config, name="native").eval()
    assert native(images(1, 3, 64, 64)).grid == (8, 8)
    with pytest.raises(ValueError, match="images are 62 x 64; native accepts only images of 64 x 64"):
        native(images(1, 3, 62, 64))


def test_bad_images_and_layers_are_refused(backbone: TimmBackbone) -> None:
    for call in (backbone, lambda x: backbone.forward_layers(x, [0], norm=False), lambda x: backbone.attention(x, [0])):
        for bad in (torch.zeros(3, 32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [torch.zeros(1, 32, 32)]):
            with pytest.raises(ValueError, match=r"want a float tensor \(B, 3, H, W\)"):
                call(bad)
    for layers in ([99], [-99], []):
        for method in (backbone.attention, lambda x, i: backbone.forward_layers(x, i, norm=False)):
            with pytest.raises(ValueError, match="want block indices from"):
                method(images(1, 3, 32, 32), layers)


def test_gradients_reach_the_image_and_every_parameter(backbone: TimmBackbone) -> None:
    with torch.inference_mode(False):
        x = images(1, 3, 72, 72).requires_grad_()
        features = backbone(x)
        (features.pooled.square().sum() + features.patches.square().sum()).backward()
        assert x.grad.abs().sum() > 0
        without = [name for name, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
        backbone.zero_grad(set_to_none=True)
    assert without == []


def test_runs_in_other_precisions(backbone: TimmBackbone) -> None:
    with torch.inference_mode(False):
        other = TimmBackbone(backbone.config)
        other.load_state_dict(backbone.state_dict())
        other = other.eval().double()
    x = images(1, 3, 72, 60)
    double = other(x).patches
    assert double.dtype == torch.float64
    assert relative_error(double.float(), backbone(x).patches) < 1e-4


def test_it_is_made_whole_under_the_meta_device(backbone: TimmBackbone) -> None:
    """As a checkpoint is loaded: buffers that no file holds must be there, too."""
    with torch.inference_mode(False):
        with torch.device("meta"):
            empty = TimmBackbone(backbone.config)
        empty.load_state_dict(backbone.state_dict(), assign=True)
    x = images(1, 3, 64, 72)
    assert torch.equal(empty.eval()(x).patches, backbone(x).patches)


# ---- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hybrid", "r26"])
@pytest.mark.parametrize("size", [(96, 64), (64, 160), (70, 40)], ids=str)
def test_attention_is_what_the_forward_uses(name: str, size: tuple[int, int]) -> None:
    backbone = BACKBONES[name]
    x = images(2, 3, *size)
    entering: list[Tensor] = []
    leaving: list[Tensor] = []
    attn = backbone.model.blocks[1].attn
    hooks = [
        attn.register_forward_pre_hook(lambda _, given: entering.append(given[0])),
        attn.register_forward_hook(lambda *given: leaving.append(given[-1])),
    ]
    backbone(x)
    for hook in hooks:
        hook.remove()
    last, attention, again = backbone.attention(x, [-1, 1, 1])
    value = attn.qkv(entering[0]).chunk(3, dim=-1)[2].unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
    mixed = (attention.weights @ value).transpose(1, 2).flatten(2)
    assert relative_error(attn.proj(mixed), leaving[0]) < TOLERANCE
    assert torch.equal(attention.weights, again.weights)
    assert torch.allclose(last.weights.sum(-1), torch.ones(()), atol=1e-5)
    assert (last.num_prefix, last.grid) == (1, backbone(x).grid)
    assert last.cls_to_patches.shape == (2, backbone.spec.num_heads, *last.grid)
    assert not attn._forward_pre_hooks


def test_attention_keeps_the_fused_kernel_and_stops_at_the_deepest(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k))
    BACKBONES["hybrid"].attention(images(1, 3, 64, 64), [0, 1])
    assert len(calls) == 2


def test_attention_is_refused_where_there_is_no_one_map() -> None:
    for name in ("swin", "swin sized", "swinv2", "resnet", "convnext"):
        with pytest.raises(ValueError, match="a Swin attends within windows .* a CNN not at all"):
            BACKBONES[name].attention(images(1, 3, 64, 64), [0])
    with pytest.raises(ValueError, match="once per image"):
        BACKBONES["hybrid"].attention([images(3, 64, 64), images(3, 32, 64)], [0])


# ---- configurations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"architecture": "resnet50.a1_in1k"}, "without the tag"),
        ({"image_size": (0, 4)}, r"want \(height, width\)"),
        ({"size_multiple": 0}, "at least 1"),
        ({"arguments": (("a", 1), ("a", 2))}, "want each name once"),
    ],
)
def test_configurations_that_contradict_themselves_are_refused(fields: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TimmConfig(**{"architecture": "resnet10t", **fields})


def test_choices_that_there_are_not_are_refused() -> None:
    """In a process of its own, without the type checks of the tests, which would come first."""
    code = (
        "from vitbackbone.networks.timm.backbone import TimmConfig\n"
        "for field in ('windows', 'indivisible'):\n"
        "    try: TimmConfig('resnet10t', **{field: 'other'})\n"
        "    except ValueError as e: assert f\"{field}='other'; want one of\" in str(e), e\n"
        "    else: raise SystemExit(f'{field} was taken')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_networks_that_do_not_fit_are_refused() -> None:
    for config, text in [
        (TimmConfig("resnet_unheard_of"), "has no architecture 'resnet_unheard_of'"),
        (TimmConfig("resnet10t", windows="sized"), "is not a Swin; want windows='timm'"),
        (TimmConfig("inception_v3", (299, 299)), "its last map is 8 x 8, not 10 x 10"),
    ]:
        with pytest.raises(ValueError, match=text):
            TimmBackbone(config)
