"""Ten traps that other libraries fell into. Each test fails on the behaviour that its name describes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Dinov2Backbone, Dinov2Config

from tests.backbones import QUICK, VITS
from tests.helpers import cases, photo, randomise, relative_error, tiny_vit
from tests.oracles.transformers_models import hf_model
from vitbackbone import ConversionError, Resampling, load_backbone
from vitbackbone.checkpoints.zoo import ZOO
from vitbackbone.model.config import ViTConfig
from vitbackbone.model.positions.resampling import resample


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


# ---- 1: `norm` means another thing, or nothing, from model to model -----------------------------------------------


@pytest.mark.parametrize("name", cases(VITS, QUICK))
def test_norm_is_on_by_default_and_never_a_no_op(name: str) -> None:
    """timm's default is False, DINOv2's True; timm's BEiT and EVA ignore it, and its SAM runs the neck."""
    backbone = VITS[name]
    x = images(1, 3, 32, 32)
    raw = backbone.forward_layers(x, [0, -1], norm=False)
    assert raw[0].patches.shape[1] == raw[1].patches.shape[1] == backbone.spec.dim
    if not backbone.spec.has_norm:
        with pytest.raises(ValueError, match="has no final norm to apply; pass norm=False"):
            backbone.forward_layers(x, [-1])
        return
    for layer, before in zip([0, -1], raw, strict=True):
        (normed,) = backbone.forward_layers(x, [layer])
        assert backbone.norm is not None
        assert relative_error(normed.tokens, backbone.norm(before.tokens)) < 1e-6
        assert relative_error(normed.tokens, before.tokens) > 1e-3


def test_the_families_without_a_final_norm_say_so() -> None:
    without = {"timm_beit", "timm_eva02", "timm_eva02_split", "timm_sam"}
    for name, entry in ZOO.items():
        native = "vit_intern" not in name and entry.source.startswith("timm/") and isinstance(entry.config, ViTConfig)
        mixed = entry.format.startswith(("timm_pe", "timm_naflex"))  # with a norm or without
        if native and not mixed:
            assert isinstance(entry.config, ViTConfig)
            assert entry.config.final_norm == (entry.format not in without)


# ---- 2: a grid off by one from `scale_factor` ---------------------------------------------------------------------


@pytest.mark.parametrize(("image_size", "patch_size"), [(224, 8), (518, 14)])
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_every_grid_has_as_many_positions_as_patches(image_size: int, patch_size: int, offset: float) -> None:
    side = image_size // patch_size
    table = torch.randn(side * side, 2)
    for n in range(1, 129):
        how = Resampling(offset=offset)
        assert resample(table, (side, side), (n, 129 - n), how).shape == (n * (129 - n), 2)
    naive = [n for n in range(1, 129) if int(side * (n / side)) != n]
    assert naive  # the trap is there to fall into


# ---- 3: grids compared by their number of patches -----------------------------------------------------------------


def test_as_many_patches_in_another_shape_are_another_grid() -> None:
    vit = tiny_vit(image_size=(112, 112))  # 14 x 14
    assert vit.pos_embed is not None
    positions = vit.pos_embed((7, 28))
    assert positions.shape == vit.pos_embed((14, 14)).shape
    assert relative_error(positions, vit.pos_embed((14, 14))) > 0.1


# ---- 4: a size that the patch does not divide is floored, or an assertion -----------------------------------------


@pytest.mark.parametrize("name", cases(VITS, QUICK))
def test_the_last_pixels_of_an_indivisible_size_are_seen(name: str) -> None:
    backbone = VITS[name]
    stride = backbone.spec.stride
    x = images(1, 3, 3 * stride + 2, 4 * stride + 3)
    changed = x.clone()
    changed[..., -1:, -1:] += 5
    assert backbone(x).grid == (4, 5)
    assert relative_error(backbone(changed).tokens, backbone(x).tokens) > 1e-4


# ---- 5: layers in depth order, without duplicates, or counted from the stem ---------------------------------------


def test_dinov2s_blocks_are_transformers_indices_plus_one(tmp_path: Path) -> None:
    settings = {"hidden_size": 48, "num_hidden_layers": 12, "num_attention_heads": 3, "patch_size": 8}
    config = Dinov2Config(**settings, image_size=64, out_indices=[3, 6, 9, 12], apply_layernorm=True)
    theirs = randomise(Dinov2Backbone(config))
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    ours = load_backbone(tmp_path)
    x = images(2, 3, 64, 64)
    with torch.inference_mode():
        want = theirs(x).feature_maps
        got = ours.forward_layers(x, [2, 5, 8, 11])
        mixed = ours.forward_layers(x, [11, 2, 11])
    for a, b in zip(got, want, strict=True):
        assert relative_error(a.patches, b) < 1e-5
    assert [torch.equal(m.patches, got[i].patches) for m, i in zip(mixed, [3, 0, 3], strict=True)] == [True] * 3


# ---- 6: attention maps are empty under the fused kernel, or come for all layers at once ---------------------------


@pytest.mark.parametrize("name", cases(VITS, QUICK))
def test_attention_comes_for_the_layers_asked_and_they_alone(name: str) -> None:
    backbone = VITS[name]
    maps = backbone.attention(images(1, 3, 24, 48), [1])
    assert len(maps) == 1
    assert maps[0].weights.shape[:2] == (1, backbone.spec.num_heads)
    assert torch.allclose(maps[0].weights.sum(-1), torch.ones(()), atol=1e-5)


# ---- 7: keys are missing, and loading says "success" --------------------------------------------------------------


@pytest.mark.parametrize("case", ["vit", "beit", "dinov2", "dinov3 swiglu", "clip", "siglip", "sam", "mae", "deit"])
def test_no_key_can_be_missing_or_left_over(case: str, tmp_path: Path) -> None:
    hf_model(case).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    ignored = ("mask_token", "pooler.dense")
    for whole in [key for key in state if not any(part in key for part in ignored)][::7]:
        key = whole.removeprefix("vision_encoder.")  # errors name the keys of the tower
        save_file({k: v for k, v in state.items() if k != whole}, tmp_path / "model.safetensors")
        with pytest.raises(ConversionError, match=f"(?s)(missing|does not fill).*{key}|{key}.*missing"):
            load_backbone(tmp_path)
        save_file({**state, whole: torch.zeros(1, 1, 1, 1, 7)}, tmp_path / "model.safetensors")
        with pytest.raises(ConversionError, match=f"{key} .1, 1, 1, 1, 7"):
            load_backbone(tmp_path)
    prefix = "vision_encoder." if case == "sam" else ""
    save_file({**state, f"{prefix}surprise": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match="surprise: no rule of the format knows this key"):
        load_backbone(tmp_path)


# ---- 8: the EXIF orientation is applied by one library and not by another -----------------------------------------


def test_a_photo_and_its_rotated_file_have_the_same_features(tmp_path: Path) -> None:
    upright = photo(48, 64)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter, clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    nano = load_backbone("nano")
    with torch.inference_mode():
        a, b = (nano(nano.preprocess(tmp_path / f"{name}.png")[None]).cls for name in ("turned", "upright"))
    assert torch.equal(a, b)


# ---- 9: the batch size changes the features -----------------------------------------------------------------------


@pytest.mark.parametrize("name", cases(VITS, QUICK))
def test_the_company_of_other_images_changes_nothing(name: str) -> None:
    """Stated tolerance: 1e-5 of the largest value. Kernels sum in another order for another batch."""
    backbone = VITS[name]
    x = images(7, 3, 40, 32)
    with torch.inference_mode():
        together = backbone(x)
        for i in range(len(x)):
            alone = backbone(x[i : i + 1])
            assert relative_error(together.patches[i : i + 1], alone.patches) < 1e-5
            assert relative_error(together.pooled[i : i + 1], alone.pooled) < 1e-5


# ---- 10: an exported graph has one position table baked in, or another bicubic ------------------------------------


EXPORT = """
import sys, torch
from tests.backbones import VITS, images
from tests.helpers import relative_error
class Tokens(torch.nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
    def forward(self, x):
        return self.backbone(x).tokens
here, there = images(2, 3, 48, 40), images(2, 3, 64, 32)
auto = {"x": {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}}
for name in sys.argv[1:]:
    backbone = VITS[name]
    for shapes in (None, auto):
        with torch.no_grad():
            try:
                graph = torch.export.export(Tokens(backbone), (here,), dynamic_shapes=shapes).module()
            except ValueError as error:
                assert shapes and "Export one height and width" in str(error), name
                print(name, True, "refused")
                continue
            assert relative_error(graph(here), backbone(here).tokens) < 1e-5, name
            try:
                got = graph(there)
            except AssertionError:
                print(name, bool(shapes), "refused")  # by the guards of the graph
            else:
                assert relative_error(got, backbone(there).tokens) < 1e-5, name
                print(name, bool(shapes), "right")
            assert relative_error(backbone(here).tokens, graph(here)) < 1e-5, name  # no symbol was kept
"""


@pytest.mark.parametrize(
    "names",
    [
        ("cls",),
        pytest.param(("sincos2d", "offset", "rotary halves", "windows", "relative spline"), marks=pytest.mark.slow),
    ],
    ids=["some", "others"],
)
def test_an_exported_graph_is_right_at_another_size_or_refuses_it(names: tuple[str, ...]) -> None:
    """In a process of its own, without the type checks of the tests, which know no symbolic sizes."""
    run = subprocess.run(
        [sys.executable, "-c", EXPORT, *names], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert run.returncode == 0, run.stderr
    lines = set(run.stdout.splitlines())
    resampled = {f"{name} True right" for name in names if name in ("cls", "sincos2d")}
    assert resampled <= lines  # tables that are resampled follow the size
    assert len(lines) == 2 * len(names)
    assert sum(line.endswith("False refused") for line in lines) == len(names)


def test_antialiased_bicubic_is_pillows_and_plain_bicubic_is_not() -> None:
    """Bicubic kernels differ in their coefficient: -0.5 with antialias, as Pillow has it, and -0.75 without."""
    table = torch.randn(14 * 14, 1)
    pillow = Image.fromarray(table.view(14, 14).numpy()).resize((9, 6), Image.Resampling.BICUBIC)
    want = torch.from_numpy(np.array(pillow)).flatten()
    anti, plain = (resample(table, (14, 14), (6, 9), Resampling(antialias=a)).flatten() for a in (True, False))
    assert torch.allclose(anti, want, atol=1e-5)
    assert (plain - want).abs().max() > 0.05
