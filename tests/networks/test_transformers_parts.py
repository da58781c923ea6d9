"""The private parts of transformers that this package reads. A failure names the part that a new release changed."""

import ast
import inspect
from pathlib import Path

import pytest
import transformers

import vitbackbone
from vitbackbone.networks.transformers.parts import private

HOME = Path(vitbackbone.__file__).parent
CALLS = [
    node
    for file in sorted(HOME.rglob("*.py"))
    for node in ast.walk(ast.parse(file.read_text()))
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "private"
]
NAMES = sorted({tuple(ast.literal_eval(a) for a in c.args) for c in CALLS if isinstance(c.args[1], ast.Constant)})
CONVERTERS = [("core_model_loading", name) for name in ("WeightRenaming", "WeightConverter")]  # named in a loop


@pytest.mark.parametrize(("module", "name"), [*NAMES, *CONVERTERS])
def test_transformers_has_the_name(module: str, name: str) -> None:
    assert private(module, name) is not None


def test_a_name_that_is_gone_is_named() -> None:
    with pytest.raises(RuntimeError, match="transformers .* has no utils.nothing, which this package reads"):
        private("utils", "nothing")


def test_models_say_which_modules_are_their_layers() -> None:
    records = transformers.ViTModel._can_record_outputs
    assert inspect.isclass(getattr(records["hidden_states"], "target_class", records["hidden_states"]))


def test_a_config_keeps_the_kind_of_attention() -> None:
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    assert transformers.ViTModel(config).config._attn_implementation in ("sdpa", "eager")


def test_parameters_from_a_file_are_marked() -> None:
    """`heads.adapters.huggingface` refuses a file that lacks weights by this mark."""
    assert "_is_hf_initialized" in inspect.getsource(transformers.modeling_utils)
    assert callable(transformers.PreTrainedModel._init_weights)
