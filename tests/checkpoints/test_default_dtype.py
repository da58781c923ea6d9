"""torch's default dtype, which transformers and programs in half precision change, changes nothing that is built."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from heads import create_head
from tests.checkpoints.sampling import covering, first_of_each
from tests.helpers import tiny_vit
from tests.oracles.transformers_models import HF, hf_model
from vitbackbone import BackboneModule, ViT, load_backbone
from vitbackbone.contract.dtypes import float32_default
from vitbackbone.model.config import Rotary

FAMILIES = first_of_each(HF, lambda name: HF[name].family)
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    mine, other = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (ours, theirs))
    assert mine.keys() == other.keys()
    assert [key for key in mine if mine[key].dtype != other[key].dtype or not torch.equal(mine[key], other[key])] == []


def outputs(backbone: BackboneModule) -> list[torch.Tensor]:
    size = backbone.spec.image_size
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    with torch.inference_mode():
        features = backbone(image)
    return [features.patches, features.pooled]


@pytest.mark.parametrize(("name", "dtype"), covering([*HF], DTYPES.args[1], quick=FAMILIES))
def test_a_directory_is_loaded_as_without_it(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    hf_model(name).save_pretrained(tmp_path)
    want = load_backbone(tmp_path)
    found = outputs(want)
    torch.set_default_dtype(dtype)
    got = load_backbone(tmp_path)
    assert torch.get_default_dtype() == dtype
    assert_same(got, want)
    for mine, other in zip(outputs(got), found, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize(
    ("name", "dtype"),
    covering(
        ["nano", "vit_tiny_patch16_224.augreg_in21k", "swinv2_tiny_window8_256.ms_in1k", "resnet50.a1_in1k"],
        DTYPES.args[1],
        quick=["nano", "vit_tiny_patch16_224.augreg_in21k"],
    ),
)
def test_random_weights_are_those_without_it(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    want = load_backbone(name, weights="random")
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    assert_same(load_backbone(name, weights="random"), want)


@DTYPES
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"position": "sincos2d"},
        {"position": "none", "rotary": Rotary(100.0, "centred", "halves"), "num_registers": 2},
        {"relative_position": "table", "position": "none"},
        {"stem": ((8, 2), (16, 4))},
    ],
    ids=str,
)
def test_a_vit_is_built_and_run_as_without_it(fields: dict[str, object], dtype: torch.dtype) -> None:
    want = tiny_vit(**fields)
    pictures = [torch.randn(3, *size, dtype=torch.float32) for size in ((32, 32), (40, 24))]
    with torch.inference_mode():
        mixed = want(pictures).pooled
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    built = ViT(want.config)
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    assert_same(built, ViT(want.config))
    torch.set_default_dtype(dtype)
    with torch.inference_mode():
        built.load_state_dict(want.state_dict())
        assert torch.equal(built.eval()(pictures).pooled, mixed)


@DTYPES
@pytest.mark.parametrize("name", ["linear", "dpt", "upernet"])
def test_a_head_is_built_as_without_it(name: str, dtype: torch.dtype) -> None:
    spec = tiny_vit(depth=4).spec

    def build() -> nn.Module:
        torch.manual_seed(0)
        return create_head(name, spec, num_classes=3)

    want = build()
    torch.set_default_dtype(dtype)
    assert_same(build(), want)


def test_the_default_comes_back_after_an_error() -> None:
    @float32_default()
    def fail() -> None:
        assert torch.get_default_dtype() == torch.float32
        raise ValueError("x")

    torch.set_default_dtype(torch.bfloat16)
    with pytest.raises(ValueError, match="x"):
        fail()
    assert torch.get_default_dtype() == torch.bfloat16
