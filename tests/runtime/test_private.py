"""Private operations of torch: each stands in one file, and a changed signature says which one changed.

All are tried against torch's public operations before they are used, so a change costs speed and not correctness.
"""

from pathlib import Path

import pytest
import torch
from torch.fx.experimental import _config as symbolic_shapes

import vitbackbone
from vitbackbone.contract import tracing
from vitbackbone.runtime import kernels

HOME = Path(vitbackbone.__file__).parent
PLACES = {
    "torch.ops.mkldnn.": "runtime/kernels.py",
    "torch._addmm_activation(": "runtime/kernels.py",
    "torch.ops.onednn.": "runtime/int8.py",
    "torch.fx.experimental": "contract/tracing.py",
    "torch.nn.attention.varlen": "model/varlen.py",
    "import _pytree": "contract/pytrees.py",
    "torch.utils._python_dispatch": "inspection/costs.py",
    "_option_string_actions": "cli/usage.py",
    "try_to_load_from_cache(": "checkpoints/hub.py",
}
ARGUMENTS = {
    "mkldnn._reorder_linear_weight": "self batch_size",
    "mkldnn._linear_pointwise": "X W B attr scalars algorithm",
    "onednn.qlinear_prepack": "weight x_shape",
    "onednn.qlinear_pointwise": (
        "qx x_scale x_zero_point qw w_scale w_zero_point bias output_scale output_zero_point output_dtype post_op_name "
        "post_op_args post_op_algorithm"
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_each_private_interface_stands_in_one_file(name: str) -> None:
    found = {file.relative_to(HOME).as_posix() for file in HOME.rglob("*.py") if name in file.read_text()}
    assert found == {PLACES[name]}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_operations_have_the_arguments_that_are_given(name: str) -> None:
    library, operation = name.split(".")
    packet = getattr(getattr(torch.ops, library), operation, None)
    if packet is None:
        pytest.skip(f"this torch has no {name}")
    schema = torch._C._get_schema(f"{library}::{operation}", "")
    got = " ".join(argument.name for argument in schema.arguments)
    assert got == ARGUMENTS[name], f"torch {torch.__version__} changed {name}; adapt {PLACES[f'torch.ops.{library}.']}"


def test_the_activation_of_a_product_is_asked_for_by_name() -> None:
    schema = torch._C._get_schema("aten::_addmm_activation", "")
    assert [argument.name for argument in schema.arguments][:3] == ["self", "mat1", "mat2"]
    assert "use_gelu" in {argument.name for argument in schema.arguments}


def test_exporting_for_one_patch_is_asked_of_a_setting_that_torch_has() -> None:
    name = tracing.OBLIVIOUS
    assert getattr(symbolic_shapes, name, None) is False, (
        f"torch {torch.__version__} changed {name}; see docs/how-to/export.md"
    )


def test_a_torch_without_the_setting_still_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "OBLIVIOUS", "a_setting_that_is_gone")
    with tracing._size_oblivious():
        pass


def test_the_setting_is_put_back_after_an_error() -> None:
    before = getattr(symbolic_shapes, tracing.OBLIVIOUS)
    with pytest.raises(RuntimeError, match="a fault"), tracing._size_oblivious():
        raise RuntimeError("a fault")
    assert getattr(symbolic_shapes, tracing.OBLIVIOUS) == before


def test_a_missing_activation_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "_addmm_activation")
    assert "no linear with a GELU here" in kernels.gelu_trouble(torch.bfloat16, torch.device("cpu"))
