"""Heads for robot policies, against their formulas written out another way, and against transformers where it can."""

import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads import Head, attach, create_head, freeze, list_heads, load_head, save_head
from tests.helpers import randomise, relative_error, tiny_vit
from vitbackbone import Features, FusedBackbone, Geometry, Member, ViT, ViTConfig

HEADS: dict[str, dict[str, object]] = {
    "keypoint_encoder": {"num_keypoints": 5},
    "map_pool": {"num_heads": 2},
    "perceiver_resampler": {"num_latents": 5, "depth": 2, "num_heads": 2, "head_dim": 6},
    "policy_neck": {"width": 12},
    "space_to_depth": {"projection": "mlp", "width": 24},
    "spatial_softmax": {"num_keypoints": 5},
    "token_projector": {"width": 24},
}
POOLING = ["keypoint_encoder", "map_pool", "perceiver_resampler", "policy_neck", "spatial_softmax"]
PLAIN = {"projection": "none", "width": None}
LIMIT = 1e-5


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features(grid: tuple[int, int], dim: int = 16, count: int = 2, stride: int = 8) -> Features:
    size = (grid[0] * stride, grid[1] * stride)
    return Features(None, torch.zeros(count, 0, dim), images(count, dim, *grid), Geometry((size,) * count, stride))


def make(name: str, **options: object) -> Head:
    return randomise(create_head(name, tiny_vit().spec, **{**HEADS[name], **options}))


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


# ---- projectors ----------------------------------------------------------------------------------------------------


def test_openvlas_projector_has_its_number_of_parameters() -> None:
    """2176 -> 8704 -> 4096 -> 4096 with biases, made without memory for them."""
    with torch.device("meta"):
        shape = {"image_size": (28, 28), "patch_size": 14, "depth": 2, "num_heads": 2, "mlp_dim": 8}
        members = [ViT(ViTConfig(dim=dim, **shape)) for dim in (1024, 1152)]
        spec = FusedBackbone([Member(member, -2, norm=False) for member in members]).spec
        head = create_head("openvla_projector", spec)
        again = create_head("token_projector", spec, width=4096, form="fused", norm=False)
    shapes = [tuple(p.shape) for p in head.parameters()]
    assert shapes == [(8704, 2176), (8704,), (4096, 8704), (4096,), (4096, 4096), (4096,)]
    assert sum(p.numel() for p in head.parameters()) == 71_385_600
    assert [tuple(p.shape) for p in again.parameters()] == shapes


def test_openvlas_projector_takes_the_one_layer_of_fused_encoders() -> None:
    first, second = tiny_vit(), tiny_vit(seed=1, cls=False, pool="mean")
    fused = FusedBackbone([Member(first, -2, norm=False), Member(second, -2, norm=False)])
    head = randomise(create_head("openvla_projector", fused.spec, width=24))
    x = images(2, 3, 32, 48)
    patches = torch.cat([vit.forward_layers(x, [-2], norm=False)[0].patches for vit in (first, second)], dim=1)
    (w1, b1), (w2, b2), (w3, b3) = ((p.weight, p.bias) for p in head.projection if isinstance(p, nn.Linear))
    y = torch.einsum("bdhw,od->bhwo", patches, w1) + b1
    y = torch.einsum("bhwd,od->bhwo", gelu(y), w2) + b2
    y = torch.einsum("bhwd,od->bhwo", gelu(y), w3) + b3
    assert relative_error(attach(fused, {"tokens": head})(x)["tokens"], y.flatten(1, 2)) < LIMIT


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


@pytest.mark.parametrize("form", ["linear", "mlp"])
@pytest.mark.parametrize("patch", [8, 14])
def test_the_token_projector_maps_each_patch_by_itself(form: str, patch: int) -> None:
    vit = tiny_vit(patch_size=patch, image_size=(4 * patch, 4 * patch))
    head = randomise(create_head("token_projector", vit.spec, width=24, form=form, layer=1, norm=False))
    x = images(2, 3, 33, 50)
    (layer,) = vit.forward_layers(x, [1], norm=False)
    linears = [module for module in head.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == {"linear": 1, "mlp": 2}[form]
    tokens = attach(vit, {"tokens": head})(x)["tokens"]
    h, w = layer.grid
    for row, column in [(0, 0), (h - 1, 0), (1, w - 1)]:
        y = layer.patches[:, :, row, column] @ linears[0].weight.T + linears[0].bias
        if form == "mlp":
            y = gelu(y) @ linears[1].weight.T + linears[1].bias
        assert relative_error(tokens[:, row * w + column], y) < LIMIT


@pytest.mark.parametrize(("grid", "factor"), [((4, 4), 2), ((4, 6), 2), ((2, 8), 2), ((9, 3), 3), ((8, 4), 4)], ids=str)
def test_space_to_depth_gathers_squares(grid: tuple[int, int], factor: int) -> None:
    seen = features(grid)
    tokens = make("space_to_depth", factor=factor, **PLAIN)(seen)
    across = grid[1] // factor
    assert tokens.shape == (2, grid[0] * grid[1] // factor**2, 16 * factor**2)
    for n in range(tokens.shape[1]):
        top, left = n // across * factor, n % across * factor
        square = [seen.patches[:, :, top + i, left + j] for i in range(factor) for j in range(factor)]
        assert torch.equal(tokens[:, n], torch.cat(square, dim=1))


def test_space_to_depth_is_the_pixel_shuffle_of_internvl_and_smolvlm() -> None:
    pytest.importorskip("transformers")
    from transformers.models.internvl.modeling_internvl import InternVLModel
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector

    seen = features((8, 8))
    internvl = InternVLModel.pixel_shuffle(None, seen.patches.permute(0, 2, 3, 1).contiguous(), 0.5)
    assert torch.equal(make("space_to_depth", **PLAIN)(seen), internvl.flatten(1, 2))
    for factor in (2, 4):
        ours = make("space_to_depth", factor=factor, **PLAIN)(seen)
        assert torch.equal(ours, SmolVLMConnector.pixel_shuffle(None, seen.tokens.contiguous(), factor))


def test_space_to_depth_and_a_linear_layer_are_nanovlms() -> None:
    """The steps of its models/modality_projector.py, on a square grid."""
    seen, s = features((8, 8)), 4
    x = seen.tokens.view(2, 8, 8, 16).reshape(2, 8 // s, s, 8 // s, s, 16)
    x = x.permute(0, 1, 3, 2, 4, 5).contiguous().reshape(2, -1, 16 * s**2)
    head = make("space_to_depth", factor=s, projection="linear")
    assert relative_error(head(seen), x @ head.projection.weight.T) < LIMIT
    assert head.projection.bias is None
    torch.manual_seed(0)
    fresh = create_head("space_to_depth", tiny_vit().spec, projection="linear", width=400)
    assert fresh.projection.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_space_to_depth_and_an_mlp_are_internvls() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector

    text = {"model_type": "qwen2", "hidden_size": 24}
    config = transformers.InternVLConfig(vision_config={"hidden_size": 16}, text_config=text)
    theirs = randomise(InternVLMultiModalProjector(config))
    head, seen = make("space_to_depth"), features((4, 6))
    names = {"layer_norm": "0", "linear_1": "1.0", "linear_2": "1.2"}
    parts = [(*key.split("."), value) for key, value in theirs.state_dict().items()]
    head.projection.load_state_dict({f"{names[layer]}.{kind}": value for layer, kind, value in parts})
    assert relative_error(head(seen), theirs(make("space_to_depth", **PLAIN)(seen))) < LIMIT


# ---- resamplers and pooling ----------------------------------------------------------------------------------------


def norm(x: Tensor, of: nn.LayerNorm, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * of.weight + of.bias


def attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """One head after another."""
    outputs = []
    for a, b, c in zip(*(x.chunk(num_heads, dim=-1) for x in (q, k, v)), strict=True):
        outputs.append((a @ b.transpose(1, 2) / math.sqrt(a.shape[-1])).softmax(-1) @ c)
    return torch.cat(outputs, dim=-1)


def test_the_perceiver_resampler_equals_the_formula() -> None:
    head, seen = make("perceiver_resampler"), features((3, 5))
    latents = head.latents.repeat(2, 1, 1)
    for block in head.blocks:
        media, queries = norm(seen.tokens, block.norm_tokens), norm(latents, block.norm_latents)
        both = torch.cat((media, queries), dim=1)
        key, value = block.kv.weight[:12], block.kv.weight[12:]
        mixed = attention(queries @ block.q.weight.T, both @ key.T, both @ value.T, 2)
        latents = latents + mixed @ block.proj.weight.T
        latents = latents + gelu(norm(latents, block.mlp[0]) @ block.mlp[1].weight.T) @ block.mlp[3].weight.T
    assert relative_error(head(seen), norm(latents, head.norm)) < LIMIT


def test_the_perceiver_resampler_is_flamingos_by_default() -> None:
    """Its sizes; only the norms have biases."""
    head = create_head("perceiver_resampler", tiny_vit().spec)
    assert head.latents.shape == (64, 16)
    assert len(head.blocks) == 6
    assert head.blocks[0].q.weight.shape == (8 * 64, 16)
    assert all(m.bias is None for m in head.modules() if isinstance(m, nn.Linear))


def test_map_pooling_equals_the_formula() -> None:
    head, seen = make("map_pool"), features((3, 5))

    def linear(x: Tensor, of: nn.Linear) -> Tensor:
        return x @ of.weight.T + of.bias

    q = linear(head.query.expand(2, 1, 16), head.q)
    y = linear(attention(q, linear(seen.tokens, head.k), linear(seen.tokens, head.v), 2), head.proj)
    hidden = linear(norm(y, head.norm, 1e-6), head.mlp[0])
    hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    assert relative_error(head(seen), (y + linear(hidden, head.mlp[2]))[:, 0]) < LIMIT


@pytest.mark.parametrize("grid", [(14, 14), (3, 8), (1, 5), (1, 1)], ids=str)
def test_spatial_softmax_is_the_mean_position(grid: tuple[int, int]) -> None:
    head, seen = make("spatial_softmax"), features(grid)
    h, w = grid
    logits = torch.einsum("bdhw,kd->bkhw", seen.patches, head.keypoints.weight[:, :, 0, 0])
    weights = (logits + head.keypoints.bias.view(1, -1, 1, 1)).exp()
    weights = weights / weights.sum((2, 3), keepdim=True)
    expected = torch.zeros(2, 5, 2)
    for row in range(h):
        for column in range(w):
            at = [2 * i / (side - 1) - 1 if side > 1 else -1 for i, side in ((column, w), (row, h))]
            expected += weights[:, :, row, column, None] * torch.tensor(at)
    torch.testing.assert_close(head(seen), expected, atol=1e-5, rtol=1e-5)


def test_the_keypoint_encoder_is_a_linear_layer_and_relu_on_keypoints() -> None:
    head, seen, points = make("keypoint_encoder"), features((3, 8)), make("spatial_softmax")
    points.keypoints.load_state_dict(head.keypoints.state_dict())
    expected = (points(seen).reshape(2, 10) @ head.out.weight.T + head.out.bias).clamp(min=0)
    assert relative_error(head(seen), expected) < LIMIT
    assert (expected == 0).any()


def test_the_policy_neck_is_theias_on_its_grid() -> None:
    head, seen = make("policy_neck"), features((14, 14))
    theirs = nn.Sequential()
    for shape, kernel, stride, padding in (([12, 7, 7], 4, 2, 1), ([12, 3, 3], 3, 2, 0), ([12, 1, 1], 3, 1, 0)):
        theirs.extend([nn.LazyConv2d(12, kernel, stride, padding), nn.LayerNorm(shape), nn.ReLU()])
    theirs(seen.patches)
    for ours, other in zip(head.neck, theirs, strict=False):
        if isinstance(other, nn.Conv2d):
            other.load_state_dict(ours.state_dict())
        elif isinstance(other, nn.LayerNorm):
            for name in ("weight", "bias"):
                getattr(other, name).copy_(getattr(ours, name).view(-1, 1, 1).expand_as(getattr(other, name)))
    assert relative_error(head(seen), theirs(seen.patches).flatten(1)) < LIMIT


@pytest.mark.parametrize("grid", [(4, 4), (16, 16), (9, 31), (37, 37)], ids=str)
def test_the_policy_neck_sees_every_corner_of_any_grid_and_tells_them_apart(grid: tuple[int, int]) -> None:
    head, outputs = make("policy_neck"), []
    for corner in [None, (0, 0), (0, -1), (-1, 0), (-1, -1)]:
        seen = features(grid, count=1)
        if corner:
            seen.patches[:, :, corner[0], corner[1]] += 30
        outputs.append(head(seen))
        assert outputs[-1].shape == (1, 12)
    assert all(not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(outputs) for b in outputs[:i])


# ---- all of them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [8, 14])
@pytest.mark.parametrize("name", HEADS)
def test_they_run_attached_at_any_size_and_learn(name: str, patch: int) -> None:
    vit = tiny_vit(patch_size=patch, image_size=(4 * patch, 4 * patch))
    head = randomise(create_head(name, vit.spec, **HEADS[name]))
    both = attach(freeze(vit), {"head": head})
    with torch.enable_grad():
        output = both(images(2, 3, 4 * patch - 3, 6 * patch))["head"]
        output.square().sum().backward()
    assert output.shape[0] == 2
    assert all(p.grad is not None for p in head.parameters())
    assert not any(p.grad is not None for p in vit.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_padding_has_no_part_in_them(name: str) -> None:
    """Each image in a batch of different sizes gives the same result as by itself."""
    vit = tiny_vit()
    both = attach(vit, {"head": make(name)})
    pictures = [images(3, 48, 32), images(3, 16, 80, seed=1)]
    mixed = both(pictures)["head"]
    for i, picture in enumerate(pictures):
        alone = both(picture[None])["head"][0]
        kept = mixed[i]
        if name not in POOLING:
            valid = vit(pictures).valid[i].float()
            kept = kept[F.max_pool2d(valid[None], 2 if name == "space_to_depth" else 1).bool().flatten()]
        assert relative_error(kept, alone) < LIMIT


@pytest.mark.parametrize("name", HEADS)
def test_they_come_back_from_disk(name: str, tmp_path) -> None:
    vit, head, x = tiny_vit(), make(name), images(1, 3, 32, 48)
    head.name, head.config = name, HEADS[name]
    save_head(head, tmp_path, vit)
    assert json.loads((tmp_path / "head.json").read_text())["head"] == name
    again = load_head(tmp_path, vit)
    assert torch.equal(attach(vit, {"h": again})(x)["h"], attach(vit, {"h": head})(x)["h"])


@pytest.mark.parametrize("name", HEADS)
def test_they_run_in_bfloat16(name: str) -> None:
    vit, head, x = tiny_vit(), make(name), images(2, 3, 32, 48)
    exact = attach(vit, {"h": head})(x)["h"]
    half = attach(vit.bfloat16(), {"h": head.bfloat16()})(x)["h"]
    assert half.dtype == torch.bfloat16
    assert relative_error(half.float(), exact) < 0.15


def test_they_are_listed() -> None:
    assert {*HEADS, "openvla_projector"} <= set(list_heads())


def test_wrong_use_is_refused() -> None:
    spec = tiny_vit().spec
    with pytest.raises(ValueError, match="'none'.* want one of linear, mlp, fused"):
        create_head("token_projector", spec, width=4, form="none")
    for options in ({"projection": "linear"}, {"width": 4}):
        with pytest.raises(ValueError, match="want both or neither"):
            create_head("space_to_depth", spec, **options)
    with pytest.raises(ValueError, match="num_heads=3 does not divide 16, the width of tiny"):
        create_head("map_pool", spec, num_heads=3)
    with pytest.raises(ValueError, match="needs a map with sides divisible by 2; images of 40 x 32 give 5 x 4"):
        attach(tiny_vit(), {"tokens": make("space_to_depth")}, image_size=(40, 32))
    both = attach(tiny_vit(), {"tokens": make("space_to_depth")})
    with pytest.raises(ValueError, match="Resize the images, for example 48 x 32"):
        both(images(1, 3, 40, 32))
    with pytest.raises(ValueError, match="made for tiny"):
        attach(tiny_vit(dim=32), {"pool": make("map_pool")})
    with pytest.raises(ValueError, match="make it with norm=False"):
        attach(tiny_vit(final_norm=False, pool="mean", fc_norm=True), {"pool": make("map_pool")})
    with pytest.raises(ValueError, match="want block indices"):
        create_head("map_pool", spec, layer=3)
