"""Private names of other libraries: each is used in one file, and a failure says which name a new release changed.

Operations of torch are compared with public ones before they are used, so a change costs speed and not correctness.
"""

import ast
import inspect
from pathlib import Path

import pytest
import torch
from torch.fx.experimental import _config as symbolic_shapes

import vitbackbone
from vitbackbone.contract import tracing
from vitbackbone.runtime import kernels

ROOT = Path(vitbackbone.__file__).parent.parent
HOME = ROOT / "vitbackbone"
PLACES = {
    "torch.ops.mkldnn.": "runtime/kernels.py",
    "torch.ops.onednn.": "runtime/int8.py",
    "torch.fx.experimental": "contract/tracing.py",
    "torch.nn.attention.varlen": "model/varlen.py",
    "import _pytree": "contract/pytrees.py",
    "torch.utils._python_dispatch": "inspection/costs.py",
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


LIBRARIES = {"torch", "nn", "timm", "torchvision", "transformers", "sklearn", "argparse", "DistributedDataParallel"}
DOCUMENTED = {"_replace", "_getframe", "_exit"}  # of namedtuple, sys and os
USES = {  # every private attribute of another library, and the only file that reads it
    "_active_ddp_module": "heads/parallel.py",
    "_addmm_activation": "vitbackbone/runtime/kernels.py",
    "_attn_implementation": "vitbackbone/networks/transformers/runs.py",
    "_buffers": "vitbackbone/networks/timm/network.py",
    "_can_record_outputs": "vitbackbone/networks/transformers/parts.py",
    "_cdata": "vitbackbone/inspection/costs.py",
    "_check": "vitbackbone/contract/tracing.py",
    "_is_fsdp_managed_module": "heads/parallel.py",
    "_is_hf_initialized": "heads/adapters/huggingface.py",
    "_is_mkldnn_bf16_supported": "examples/train_nano.py",
    "_linear_pointwise": "vitbackbone/runtime/kernels.py",
    "_non_persistent_buffers_set": "vitbackbone/networks/timm/network.py",
    "_option_string_actions": "vitbackbone/cli/usage.py",
    "_parameters": "vitbackbone/networks/timm/network.py",
    "_reorder_linear_weight": "vitbackbone/runtime/kernels.py",
    "_use_python_reducer": "heads/parallel.py",
}


def private_uses(tree: ast.Module, own: set[str]) -> set[str]:
    """Return the private attributes that a file reads of something that this project does not define."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            library = ast.unparse(node.value).partition(".")[0] in LIBRARIES
            name = node.attr if library or node.attr not in own else ""
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr") and len(node.args) > 1:
            text = node.args[1]
            name = text.value if isinstance(text, ast.Constant) and text.value not in own else ""
        else:
            continue
        if name.startswith("_") and not name.startswith("__"):
            found.add(name)
    return found - DOCUMENTED


def defined(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return names


def test_every_private_attribute_is_listed_and_has_one_home() -> None:
    files = [file for part in ("vitbackbone", "heads", "examples") for file in sorted((ROOT / part).rglob("*.py"))]
    trees = {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text()) for file in files}
    own = set().union(*map(defined, trees.values()))
    found = {(name, file) for file, tree in trees.items() for name in private_uses(tree, own)}
    assert found == set(USES.items())


def test_modules_keep_their_parameters_and_buffers_where_copies_of_a_network_expect_them() -> None:
    """`networks.timm.network` gives copies for other sizes the tensors of the network."""
    module = torch.nn.BatchNorm2d(2)
    module.register_buffer("temporary", torch.zeros(1), persistent=False)
    assert module._parameters.keys() == dict(module.named_parameters()).keys()
    assert module._buffers.keys() == dict(module.named_buffers()).keys()
    assert module._non_persistent_buffers_set == {"temporary"}


def test_moving_a_module_goes_through_the_method_that_kernels_override() -> None:
    assert list(inspect.signature(torch.nn.Module._apply).parameters) == ["self", "fn", "recurse"]


def test_views_share_the_storage_that_costs_count_once() -> None:
    x = torch.zeros(4, device="meta")
    assert x[1:].untyped_storage()._cdata == x.untyped_storage()._cdata
    assert torch.zeros(4, device="meta").untyped_storage()._cdata != x.untyped_storage()._cdata


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
