"""One suite over every backbone: what `vitbackbone.Backbone` promises. Below, what every `ViT` does."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.backbones import BACKBONES, QUICK, VITS
from tests.helpers import cases, relative_error, tiny_vit
from vitbackbone import (
    Backbone,
    BackboneModule,
    Features,
    FusedBackbone,
    Geometry,
    ViT,
)


@pytest.fixture(params=cases(BACKBONES, QUICK))
def backbone(request: pytest.FixtureRequest) -> BackboneModule:
    return BACKBONES[request.param]


@pytest.fixture(params=cases(VITS, QUICK))
def vit(request: pytest.FixtureRequest) -> ViT:
    return VITS[request.param]


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=8, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), batch=st.integers(1, 3))
@pytest.mark.parametrize("name", cases(BACKBONES, QUICK))
def test_any_size_gives_the_shapes_that_the_spec_promises(name: str, height: int, width: int, batch: int) -> None:
    backbone = BACKBONES[name]
    spec = backbone.spec
    with torch.inference_mode():
        features = backbone(images(batch, 3, height, width))
    h, w = -(-height // spec.stride), -(-width // spec.stride)
    assert features.patches.shape == (batch, spec.dim, h, w)
    assert features.grid == (h, w)
    assert features.tokens.shape == (batch, h * w, spec.dim)
    assert features.registers.shape == (batch, spec.num_registers, spec.dim)
    assert (features.cls is not None) == spec.has_cls
    assert features.cls is None or features.cls.shape == (batch, spec.dim)
    assert features.pooled.shape == (batch, spec.pooled_dim)
    assert features.valid.shape == (batch, h, w)
    assert features.valid.all()
    assert features.geometry.sizes == ((height, width),) * batch
    assert all(torch.isfinite(x).all() for x in (features.patches, features.registers, features.pooled))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, vit in VITS.items() if vit.spec.stride == 8 and name != "axes"])
def test_4096_tokens_give_a_map_of_64_by_64(name: str) -> None:
    with torch.inference_mode():
        features = BACKBONES[name](images(1, 3, 512, 512))
    assert features.grid == (64, 64)
    assert torch.isfinite(features.patches).all()
    assert torch.isfinite(features.pooled).all()


def test_a_side_with_more_patches_than_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="64 x 64 patches; want at most 12 a side"):
        BACKBONES["axes"](images(1, 3, 512, 512))


def test_it_is_a_backbone_to_python(backbone: BackboneModule) -> None:
    assert isinstance(backbone, Backbone)


def test_features_travel_without_the_model() -> None:
    features = BACKBONES["nano"](images(1, 3, 32, 32))
    data = pickle.dumps(features)
    assert len(data) < 1_000_000  # the model takes 11 MB
    assert torch.equal(pickle.loads(data).pooled, features.pooled)  # noqa: S301  # our own bytes


def test_features_of_four_parts_pool_cls_or_the_mean() -> None:
    patches, registers, cls = torch.randn(1, 8, 2, 3), torch.zeros(1, 0, 8), torch.randn(1, 8)
    geometry = Geometry(((16, 24),), 8)
    assert torch.equal(Features(cls, registers, patches, geometry).pooled, cls)
    mean = Features(None, registers, patches, geometry).pooled
    assert relative_error(mean, patches.mean(dim=(2, 3))) < 1e-6


def test_tokens_are_the_map_in_raster_order(backbone: BackboneModule) -> None:
    features = backbone(images(2, 3, 24, 40))
    h, w = features.grid
    for row in range(h):
        for column in range(w):
            assert torch.equal(features.tokens[:, row * w + column], features.patches[:, :, row, column])


def test_layers_come_in_the_order_asked_with_duplicates_and_negatives(backbone: BackboneModule) -> None:
    x = images(2, 3, 32, 40)
    spec = backbone.spec
    asked = [spec.depth - 1, 0, -1, 1 % spec.depth, 0]
    norm = spec.norms(asked)
    got = backbone.forward_layers(x, asked, norm=norm)
    alone = [backbone.forward_layers(x, [layer], norm=norm)[0] for layer in asked]
    assert len(got) == len(asked)
    for layer, a, b in zip(asked, got, alone, strict=True):
        assert torch.equal(a.patches, b.patches)
        assert torch.equal(a.registers, b.registers)
        assert (a.patches.shape[1], a.geometry.stride) == (spec.dims[layer], spec.strides[layer])
    assert torch.equal(backbone.forward_layers(x, [-1], norm=spec.has_norm)[0].patches, backbone(x).patches)
    if spec.depth > 1:
        a, b = got[1].patches, got[3].patches
        assert a.shape != b.shape or not torch.allclose(a, b)


def test_each_layer_may_have_its_own_norm(backbone: BackboneModule) -> None:
    """One run gives raw and normed maps, as several heads of one backbone want them."""
    x, last = images(2, 3, 64, 48), backbone.spec.depth - 1
    norms = [False, backbone.spec.norms([last]), False]
    got = backbone.forward_layers(x, [last, -1, 0], norm=norms)
    for layer, norm, features in zip([last, last, 0], norms, got, strict=True):
        (alone,) = backbone.forward_layers(x, [layer], norm=norm)
        assert torch.equal(features.patches, alone.patches)
        assert torch.equal(features.registers, alone.registers)
    with pytest.raises(ValueError, match=r"norm=\[False, False\] has 2 values for 1 layers; want one for each layer"):
        backbone.forward_layers(x, [0], norm=[False, False])


def test_no_block_runs_past_the_deepest(vit: ViT) -> None:
    ran: list[int] = []
    hooks = [block.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(vit.blocks)]
    try:
        vit.forward_layers(images(1, 3, 32, 32), [0, 1, 0], norm=False)
        assert ran == [0, 1]
        ran.clear()
        vit.attention(images(1, 3, 32, 32), [1])
        assert ran == [0]
    finally:
        for hook in hooks:
            hook.remove()


def test_norm_means_the_final_norm_of_this_checkpoint(vit: ViT) -> None:
    x = images(2, 3, 32, 32)
    (raw,) = vit.forward_layers(x, [1], norm=False)
    if vit.norm is None:
        with pytest.raises(ValueError, match="no final norm"):
            vit.forward_layers(x, [1])
        return
    (normed,) = vit.forward_layers(x, [1])
    assert relative_error(normed.tokens, vit.norm(raw.tokens)) < 1e-6
    assert raw.cls is None or relative_error(normed.cls, vit.norm(raw.cls)) < 1e-6


def test_batch_size_does_not_change_the_features(backbone: BackboneModule) -> None:
    x = images(5, 3, 40, 24)
    with torch.inference_mode():
        together = backbone(x)
        alone = torch.cat([backbone(image[None]).patches for image in x])
    assert relative_error(together.patches, alone) < 1e-5


def test_mixed_sizes_equal_each_image_alone(backbone: BackboneModule) -> None:
    batch = [images(3, 32, 32), images(3, 17, 70, seed=1), images(3, 50, 9, seed=2)]
    with torch.inference_mode():
        mixed = backbone(batch)
        for i, image in enumerate(batch):
            one = backbone(image[None])
            h, w = one.grid
            assert relative_error(mixed.patches[i, :, :h, :w], one.patches[0]) < 1e-5
            assert relative_error(mixed.pooled[i], one.pooled[0]) < 1e-5
            assert mixed.valid[i, :h, :w].all()
            assert mixed.valid[i].sum() == h * w
            assert not mixed.patches[i][:, ~mixed.valid[i]].any()
    assert mixed.grid == mixed.patches.shape[-2:]


def test_a_size_the_patch_does_not_divide_is_padded_with_the_mean_colour(vit: ViT) -> None:
    stride = vit.spec.stride
    x = images(1, 3, 2 * stride + 1, 3 * stride - 1)
    padded = F.pad(x, (0, 1, 0, stride - 1))
    assert torch.equal(vit(x).patches, vit(padded).patches)
    assert vit(x).geometry.padding == ((stride - 1, 1),)


def test_attention_is_what_the_forward_uses(vit: ViT, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 24 x 48 pixels the windows of 3 x 3 patches need no padding, and every row sums to 1."""
    x = images(2, 3, 24, 48)
    asked = [-1, 0, 0]
    maps = vit.attention(x, asked)
    assert len(maps) == len(asked)
    assert torch.equal(maps[1].weights, maps[2].weights)
    given: list[tuple[torch.Tensor, ...]] = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda q, k, v, **o: given.append((q, k, o.get("attn_mask"))) or fused(q, k, v, **o),
    )
    vit(x)
    q, k, bias = given[-1]  # of the last block, or of a pooling after it
    if not vit.config.window and vit.config.pool != "map":
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        assert relative_error(maps[0].weights, (scores if bias is None else scores + bias).softmax(-1)) < 1e-5
    for attention in maps:
        assert torch.allclose(attention.weights.sum(-1), torch.ones(()), atol=1e-5)
        assert attention.weights.shape[-1] == attention.num_prefix + attention.grid[0] * attention.grid[1]
    if vit.spec.num_prefix:
        h, w = maps[0].grid
        n = maps[0].num_prefix
        assert torch.equal(maps[0].cls_to_patches[..., 1, 2], maps[0].weights[:, :, 0, n + w + 2])
        assert maps[0].cls_to_patches.shape[-2:] == (h, w)
    else:
        with pytest.raises(ValueError, match="no CLS"):
            _ = maps[0].cls_to_patches


def test_the_forward_keeps_the_fused_kernel(vit: ViT, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k))
    vit.attention(images(1, 3, 32, 32), [1])
    assert len(calls) == 1  # the block before the one looked at
    vit(images(1, 3, 32, 32))
    assert len(calls) == 1 + vit.spec.depth


def test_a_mean_of_many_patches_does_not_overflow_in_half_precision() -> None:
    patches = torch.full((1, 8, 64, 64), 20.0, dtype=torch.float16)
    features = Features(None, torch.zeros(1, 0, 8), patches, Geometry(((512, 512),), 8))
    assert torch.equal(features.pooled, torch.full((1, 8), 20.0, dtype=torch.float16))


def test_one_image_of_a_batch(backbone: BackboneModule) -> None:
    mixed = backbone([images(3, 32, 32), images(3, 17, 70, seed=1)])
    for index in (1, -1):
        one = mixed.image(index)
        assert one.grid == one.patches.shape[-2:] == mixed.geometry.grids[1]
        assert relative_error(one.pooled, mixed.pooled[1:]) < 1e-5
    with pytest.raises(IndexError):
        mixed.image(2)


def test_gradients_reach_the_image_and_every_parameter(backbone: BackboneModule) -> None:
    x = images(1, 3, 40, 40).requires_grad_()
    features = backbone(x)
    (features.pooled.square().sum() + features.patches.square().sum() + features.registers.square().sum()).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    trained = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    without = [name for name, p in trained.items() if p.grad is None]
    backbone.zero_grad(set_to_none=True)
    if not isinstance(backbone, FusedBackbone):  # its members have blocks after the layer that is taken
        assert without == []


def test_runs_in_other_precisions(backbone: BackboneModule) -> None:
    x = images(1, 3, 32, 40)
    reference = backbone(x).patches
    half = copy.deepcopy(backbone).to(torch.bfloat16)(x)
    assert half.patches.dtype == half.pooled.dtype == torch.bfloat16
    assert relative_error(half.patches.float(), reference) < 0.1
    double = copy.deepcopy(backbone).double()(x)
    assert relative_error(double.patches.float(), reference) < 1e-5


# native, odd, not square, smaller than a window and a patch
SIZES = {"native": (64, 64), "odd": (57, 57), "not square": (33, 90), "small": (5, 7)}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def everything(backbone: BackboneModule, batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor that a backbone returns: of every layer, of mixed sizes and of the prefix, and the attention."""
    spec, found = backbone.spec, {}
    layers = range(spec.depth)
    for name, pixels in {"one": batch[0][None], "mixed": batch}.items():
        kept = [(f"{name} {layer}", f) for layer, f in enumerate(backbone.forward_layers(pixels, layers, norm=False))]
        for key, features in [*kept, (f"{name} last", backbone(pixels))]:
            found |= {f"{key} patches": features.patches, f"{key} pooled": features.pooled}
            found |= {f"{key} registers": features.registers, f"{key} cls": features.cls}
        (prefix,) = backbone.forward_prefix(pixels, [-1], norm=spec.has_norm)
        found |= {f"{name} prefix pooled": prefix.pooled, f"{name} prefix cls": prefix.cls}
    if isinstance(backbone, ViT) or spec.name in ("hybrid", "r26", "hf vit"):
        found |= {f"attention {i}": a.weights for i, a in enumerate(backbone.attention(batch[0][None], layers))}
    return {key: value for key, value in found.items() if value is not None and value.numel()}


@pytest.mark.parametrize("autocast", [False, True], ids=["module", "autocast"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_is_finite_in_half_precision(backbone: BackboneModule, dtype: str, autocast: bool) -> None:
    low = backbone if autocast else copy.deepcopy(backbone).to(DTYPES[dtype])
    for name, size in SIZES.items():
        batch = [images(3, *size), images(3, 40, 24, seed=1)]
        with torch.inference_mode():
            want = everything(backbone, batch)
            with torch.autocast("cpu", DTYPES[dtype], enabled=autocast):
                got = everything(low, batch if autocast else [image.to(DTYPES[dtype]) for image in batch])
        assert got.keys() == want.keys()
        for key, value in got.items():
            assert torch.isfinite(value).all(), (name, key)
            assert F.cosine_similarity(value.float().flatten(), want[key].flatten(), dim=0) > 0.99, (name, key)


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(3, 32, 32),
        torch.zeros(1, 1, 32, 32),
        torch.zeros(1, 32, 32, 3),
        torch.zeros(0, 3, 32, 32),
        torch.zeros(1, 3, 0, 32),
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        [torch.zeros(1, 3, 32, 32)],
        [torch.zeros(3, 32, 32), torch.zeros(32, 32, 3)],
        [],
    ],
    ids=["no batch", "grey", "channels last", "empty", "no height", "uint8", "4-D in list", "mixed up", "empty list"],
)
def test_bad_images_are_refused_with_what_is_wanted(backbone: BackboneModule, bad: object) -> None:
    for call in (backbone, lambda x: backbone.forward_layers(x, [0], norm=False), lambda x: backbone.attention(x, [0])):
        with pytest.raises(ValueError, match=r"want a float tensor \(B, 3"):
            call(bad)


def test_values_that_are_no_tensors_are_refused() -> None:
    """In a process of its own, without the type checks of the tests, which would come first."""
    code = (
        "import numpy as np; from vitbackbone import ViT, vit_config; vit = ViT(vit_config('Ti/16', depth=1))\n"
        "for bad in (np.zeros((1, 3, 32, 32)), 'photo.jpg', None, [np.zeros((3, 32, 32))]):\n"
        "    try: vit(bad)\n"
        "    except ValueError as e: assert 'want a float tensor' in str(e), e\n"
        "    else: raise SystemExit(f'{type(bad)} was taken')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("layers", [[99], [-99], []])
def test_layers_out_of_range_are_refused(backbone: BackboneModule, layers: list[int]) -> None:
    with pytest.raises(ValueError, match="want block indices from"):
        backbone.forward_layers(images(1, 3, 32, 32), layers, norm=False)
    with pytest.raises(ValueError, match="want block indices from"):
        backbone.attention(images(1, 3, 32, 32), layers)


def test_attention_is_a_map_over_the_image_or_an_error_that_says_why_not(backbone: BackboneModule) -> None:
    x = images(1, 3, 64, 96)
    if not isinstance(backbone, ViT) and backbone.spec.name not in ("hybrid", "r26", "hf vit"):
        with pytest.raises(ValueError, match="attention"):
            backbone.attention(x, [-1])
        return
    (attention,) = backbone.attention(x, [-1])
    h, w = backbone(x).grid
    assert attention.grid == (h, w)
    assert attention.weights.shape[-1] == backbone.spec.num_prefix + h * w
    assert torch.allclose(attention.weights.sum(-1), torch.ones(()), atol=1e-5) or backbone.config.window


def test_attention_of_mixed_sizes_is_refused(vit: ViT) -> None:
    with pytest.raises(ValueError, match="once per image"):
        vit.attention([images(3, 32, 32), images(3, 40, 32)], [0])


def test_indivisible_sizes_are_refused_where_the_caller_says_so() -> None:
    strict = tiny_vit(indivisible="refuse")
    strict(images(1, 3, 32, 40))
    with pytest.raises(ValueError, match="33 x 40, which the patch size 8 does not divide; resize them to 40 x 40"):
        strict(images(1, 3, 33, 40))
