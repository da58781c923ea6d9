"""Masked and dropped patches: transformers' `bool_masked_pos`, and the encoder of MAE."""

import pytest
import torch
import transformers as hf
from torch import nn

from tests.helpers import randomise, relative_error, tiny_vit
from vitbackbone import ViT, load_backbone
from vitbackbone.model import Rotary

LIMIT = 1e-5
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
MLP = {**SMALL, "intermediate_size": 48}
SIZES = [(32, 32), (48, 64), (44, 29)]
MASKED = {
    "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(**SMALL)),
    "dinov2 registers": lambda: hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**SMALL)),
    "dinov3": lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**MLP, num_register_tokens=2)),
    "beit": lambda: hf.BeitModel(hf.BeitConfig(**MLP, use_mask_token=True, use_relative_position_bias=True)),
    "beit absolute": lambda: hf.BeitModel(
        hf.BeitConfig(**MLP, use_mask_token=True, use_absolute_position_embeddings=True)
    ),
    "vit": lambda: hf.ViTForMaskedImageModeling(hf.ViTConfig(**MLP)),
    "deit": lambda: hf.DeiTForMaskedImageModeling(hf.DeiTConfig(**MLP)),
}


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


def load(name: str, directory: object) -> tuple[nn.Module, ViT]:
    with torch.inference_mode(False):
        model = randomise(MASKED[name]())
    model.save_pretrained(directory)
    return getattr(model, name, model), load_backbone(directory)


@pytest.mark.parametrize("name", MASKED)
def test_masked_patches_are_transformers(name: str, tmp_path: object) -> None:
    model, backbone = load(name, tmp_path)
    for size in SIZES:
        x = torch.randn(2, 3, *size)
        grid = backbone(x).grid
        mask = torch.rand(2, *grid) > 0.4
        padded = nn.functional.pad(x, (0, grid[1] * 8 - size[1], 0, grid[0] * 8 - size[0]))
        other = {"interpolate_pos_encoding": True} if name in ("vit", "deit") and size != (32, 32) else {}
        want = model(padded, bool_masked_pos=mask.flatten(1), **other).last_hidden_state
        got = backbone(x, mask=mask)
        assert relative_error(got.tokens, want[:, -got.tokens.shape[1] :]) < LIMIT
        assert relative_error(got.cls, want[:, 0]) < LIMIT
        assert torch.equal(backbone(x, mask=torch.zeros_like(mask)).tokens, backbone(x).tokens)


def test_a_mask_that_does_not_fit_is_refused(tmp_path: object) -> None:
    _, backbone = load("dinov2", tmp_path)
    x = torch.randn(2, 3, 32, 48)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 6, 4\); want \(2, 4, 6\)"):
        backbone(x, mask=torch.zeros(2, 6, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="a list of images takes no mask="):
        backbone([x[0]], mask=torch.zeros(1, 4, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="tiny has no mask token"):
        tiny_vit()(x, mask=torch.zeros(2, 4, 6, dtype=torch.bool))


@pytest.mark.parametrize("option", ["mask", "keep"])
def test_an_optimised_backbone_refuses_at_once(option: str, tmp_path: object) -> None:
    _, backbone = load("dinov2", tmp_path)
    backbone.engine = lambda *_: {}
    given = {"mask": torch.zeros(1, 4, 4, dtype=torch.bool), "keep": torch.zeros(1, 1, dtype=torch.long)}[option]
    with pytest.raises(ValueError, match=f"an optimised backbone takes no {option}="):
        backbone(torch.randn(1, 3, 32, 32), **{option: given})


def test_a_mask_is_traced(tmp_path: object) -> None:
    _, backbone = load("dinov2", tmp_path)
    x, mask = torch.randn(1, 3, 32, 32), torch.rand(1, 4, 4) > 0.5
    exported = torch.export.export(backbone, (x,), {"mask": mask}).module()
    other = torch.rand(1, 4, 4) > 0.5
    assert relative_error(exported(x, mask=other).patches, backbone(x, mask=other).patches) < LIMIT


# ---- dropped patches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (48, 40)])
def test_kept_patches_are_those_of_mae(size: tuple[int, int], tmp_path: object) -> None:
    config = hf.ViTMAEConfig(**MLP, mask_ratio=0.5)
    with torch.inference_mode(False):
        model = randomise(hf.ViTMAEModel(config))
    model.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    x = torch.randn(2, 3, *size)
    count = size[0] // 8 * (size[1] // 8)
    noise = torch.rand(2, count)
    want = model(x, noise=noise, interpolate_pos_encoding=True)
    got = backbone.forward_kept(x, noise.argsort(dim=1)[:, : count // 2])
    assert relative_error(got.tokens, want.last_hidden_state[:, 1:]) < LIMIT
    assert relative_error(got.cls, want.last_hidden_state[:, 0]) < LIMIT


ROTARY = {"rotary": Rotary(100.0, "centred", "halves"), "position": "none", "num_registers": 2}
KINDS = {"learned": {}, "rotary": ROTARY, "table": {"relative_position": "table", "position": "none"}}


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_patches_do_not_matter_and_the_order_is_free(kind: str) -> None:
    vit = tiny_vit(**KINDS[kind])
    x = torch.randn(2, 3, 32, 40)
    everything = torch.stack([torch.randperm(20) for _ in range(2)])
    whole = vit(x)
    got = vit.forward_kept(x, everything)
    want = whole.tokens.gather(1, everything[..., None].expand(-1, -1, 16))
    assert relative_error(got.tokens, want) < LIMIT
    assert got.registers.shape[1] == vit.spec.num_registers
    keep = torch.tensor([[3, 7, 0], [19, 2, 8]])
    noisy = torch.randn_like(x)
    shown = torch.zeros(2, 20, dtype=torch.bool).scatter(1, keep, True).view(2, 1, 4, 5)
    shown = shown.repeat_interleave(8, 2).repeat_interleave(8, 3)
    a, b = vit.forward_kept(x, keep), vit.forward_kept(torch.where(shown, x, noisy), keep)
    assert relative_error(a.tokens, b.tokens) < LIMIT
    assert relative_error(a.cls, b.cls) < LIMIT
    assert relative_error(a.cls, whole.cls) > 1e-3


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (torch.tensor([[0, 16]]), "want distinct indices from 0 to 15"),
        (torch.tensor([[-1, 3]]), "values that are not patches"),
        (torch.tensor([[3, 3]]), "names a patch twice"),
        (torch.zeros(1, 0, dtype=torch.long), r"shape \(1, 0\)"),
    ],
)
def test_indices_that_cannot_be_are_refused(keep: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_vit().forward_kept(torch.randn(1, 3, 32, 32), keep)
