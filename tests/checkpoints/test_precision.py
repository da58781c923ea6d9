"""Checkpoints in half, double and mixed precision: loaded in float32, no digit of the file is lost."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.checkpoints.sampling import covering, first_of_each
from tests.helpers import randomise, relative_error, tiny_vit
from tests.oracles.cases import TIMM, errors, images, timm_model
from tests.oracles.transformers_models import HF, hf_case, hf_model
from vitbackbone import ConversionError, export_weights, load_backbone, load_checkpoint, save_pretrained
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.rules import Change, Rule, convert, rename
from vitbackbone.checkpoints.zoo import ZOO

LIMIT = 1e-5
HALVES = [torch.bfloat16, torch.float16]
FAMILIES = first_of_each(HF, lambda name: HF[name].family)


def widen(model: nn.Module) -> nn.Module:
    """Give every token and position numbers of trained size, beside which a rounding in half precision shows."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "pos" in name or "token" in name or "class_embedding" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))))
    return model


def mix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Save every parameter in another precision than the one before it."""
    dtypes = (torch.float16, torch.float32, torch.bfloat16, torch.float64)
    return {key: tensor.to(dtypes[n % 4]) for n, (key, tensor) in enumerate(state.items())}


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    assert {tensor.dtype for tensor in ours.values() if tensor.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize(("name", "dtype"), covering([*HF], [*HALVES, torch.float64], quick=FAMILIES))
def test_equals_transformers_in_float32_from_the_same_files(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    case, kind = hf_case(name), getattr(transformers, HF[name].model)
    widen(hf_model(name)).to(dtype).save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    theirs = kind.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for size in (case.sizes[0], case.sizes[min(2, len(case.sizes) - 1)]):
        found = errors(case.load(tmp_path, case.policy), case, theirs, size)
        assert max(found.values()) <= LIMIT, (size, found)


@pytest.mark.parametrize("name", covering([*HF], quick=FAMILIES[::3]))
def test_parameters_may_be_of_several_precisions(name: str, tmp_path: Path) -> None:
    widen(hf_model(name)).save_pretrained(tmp_path)
    state = mix(load_file(tmp_path / "model.safetensors"))
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = getattr(transformers, HF[name].model).from_pretrained(tmp_path, dtype=torch.float32).eval()
    case = hf_case(name)
    assert max(errors(load_backbone(tmp_path), case, theirs, case.sizes[0]).values()) <= LIMIT


@pytest.mark.parametrize(
    ("name", "dtype"),
    covering(
        [*TIMM],
        HALVES,
        quick=[name for name in first_of_each(TIMM, lambda name: ZOO[name].format) if "base" not in name],
    ),
)
def test_a_file_of_timm_in_half_is_that_file_in_float32(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """The result equals timm's after `.float()`. The parity test of the family holds the rest."""
    state = {key: tensor.to(dtype) for key, tensor in widen(timm_model(name)).state_dict().items()}
    save_file(state, tmp_path / "half.safetensors")
    save_file({key: tensor.float() for key, tensor in state.items()}, tmp_path / "float.safetensors")
    loaded, want = (load_checkpoint(name, tmp_path / f"{kind}.safetensors") for kind in ("half", "float"))
    assert_same(loaded.backbone.state_dict(), want.backbone.state_dict())
    assert_same(loaded.head, want.head) if want.head else None


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("dtype", HALVES)
def test_every_change_of_every_format_computes_in_float32(name: str, dtype: torch.dtype) -> None:
    for rule in (rule for rule in FORMATS[name] if rule.via and rule.targets):
        sources, targets = ([part.replace("{i}", "0") for part in side] for side in (rule.sources, rule.targets))
        received: list[torch.dtype] = []

        def change(*tensors: Tensor, received: list[torch.dtype] = received, rule: Rule = rule) -> tuple[Tensor, ...]:
            received.extend(tensor.dtype for tensor in tensors)
            return tuple(torch.zeros(1) for _ in rule.targets)

        state = {source: torch.ones(1, dtype=dtype) for source in sources}
        convert(state, [replace(rule, via=Change(change))], {target: torch.zeros(1) for target in targets})
        assert received == [torch.float32] * len(sources)


def test_flax_arrays_in_half_become_float32(tmp_path: Path) -> None:
    kernel = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float16)
    rule = next(rule for rule in FORMATS["flax"] if rule.sources == ("head/kernel",))
    got = convert({"head/kernel": torch.from_numpy(kernel)}, [rule], {})
    assert torch.equal(got["head.weight"], torch.from_numpy(kernel.T.astype(np.float32)))


# ---- numbers that are none by themselves --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(2, dtype=torch.float8_e4m3fn), "a: float8_e4m3fn"),
        (torch.zeros(2, dtype=torch.complex64), "a: complex64"),
        (torch.zeros(2).to_sparse(), "a: float32 sparse_coo"),
        (torch.zeros(1, dtype=torch.float4_e2m1fn_x2), "a: float4_e2m1fn_x2"),
        (torch.zeros(2, dtype=torch.int64), "x: torch.int64 in the checkpoint, torch.float32 in the model"),
        (torch.zeros(2, dtype=torch.bool), "a: bool strided in the checkpoint"),
        (torch.zeros(2, dtype=torch.int8), "a: int8 strided in the checkpoint"),
    ],
)
def test_other_kinds_of_numbers_are_refused_by_name(tensor: Tensor, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        convert({"a": tensor}, [rename("a", "x")], {"x": torch.zeros(2)})


# ---- export -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"), covering([name for name in HF if "swin" not in name], HALVES, quick=FAMILIES[::2])
)
def test_a_half_backbone_is_exported_as_it_is(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """transformers and this package read the same numbers from the directory."""
    kind = getattr(transformers, HF[name].model)
    widen(hf_model(name)).save_pretrained(tmp_path / "whole")
    checkpoint = load_checkpoint(tmp_path / "whole", positions="hf")
    half = checkpoint.backbone.to(dtype)
    head = {key: tensor.to(dtype) for key, tensor in checkpoint.head.items()}
    save_pretrained(half, tmp_path / "half", HF[name].model, head, checkpoint.labels)
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / "model.safetensors").values()} == {dtype}
    again, case = load_checkpoint(tmp_path / "half"), hf_case(name)
    assert_same(again.backbone.state_dict(), {key: tensor.float() for key, tensor in half.state_dict().items()})
    theirs = kind.from_pretrained(tmp_path / "half", dtype=torch.float32).eval()
    found = errors(again.backbone, case, theirs, case.sizes[0])
    assert max(value for part, value in found.items() if part != "pooled" or case.family != "BEiT") <= LIMIT, found


def test_a_half_backbone_is_exported_to_timm() -> None:
    backbone = tiny_vit(dim=192, depth=12, num_heads=3, mlp_dim=768, patch_size=16, image_size=(224, 224)).half()
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    model.load_state_dict(export_weights(backbone, "timm"))
    x = images((224, 224))
    with torch.inference_mode():
        want, got = model.eval()(x), backbone.float()(x).pooled
    assert relative_error(got, want) <= LIMIT


def test_random_numbers_of_the_tests_are_large_enough_to_show_a_sum_in_half() -> None:
    cls, positions = torch.randn(2, 1, 1, 12).half()
    assert not torch.equal((cls + positions).float(), cls.float() + positions.float())
    assert randomise(nn.Linear(2, 2)).weight.dtype == torch.float32
