"""The rule engine is strict on both sides, and says everything that is wrong at once."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import tiny_vit
from vitbackbone import ConversionError, load_backbone
from vitbackbone.convert import Rule, convert, drop, rename
from vitbackbone.formats import FORMATS
from vitbackbone.zoo import ZOO

T = {name: torch.full((2,), float(i)) for i, name in enumerate("abcdef")}


def stacked(*parts: Tensor) -> tuple[Tensor, ...]:
    return (torch.stack(parts),)


def test_rules_rename_join_split_and_drop() -> None:
    state = {f"layer.{n}.{part}": T[letter] for n, part, letter in [(0, "q", "a"), (0, "k", "b"), (11, "q", "c")]}
    state |= {"layer.11.k": T["d"], "x": T["e"], "y": T["f"]}
    rules = [
        Rule(("layer.{i}.q", "layer.{i}.k"), ("blocks.{i}.qk",), stacked),
        Rule(("x",), ("first", "second"), lambda x: (x[:1], x[1:])),
        drop("y"),
    ]
    want = {
        "blocks.0.qk": torch.stack([T["a"], T["b"]]),
        "blocks.11.qk": torch.stack([T["c"], T["d"]]),
        "first": T["e"][:1],
        "second": T["e"][1:],
    }
    got = convert(state, rules, expected=want)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_the_order_of_the_sources_is_the_rules_not_the_files() -> None:
    want = {"qk": torch.stack([T["a"], T["b"]])}
    assert torch.equal(
        convert({"k": T["b"], "q": T["a"]}, [Rule(("q", "k"), ("qk",), stacked)], want)["qk"], want["qk"]
    )


def test_a_head_of_any_size_comes_along() -> None:
    got = convert({"a": T["a"], "fc": torch.zeros(9)}, [rename("a", "x"), rename("fc", "head.bias")], {"x": T["b"]})
    assert got.keys() == {"x", "head.bias"}


@pytest.mark.parametrize(
    ("state", "rules", "message"),
    [
        ({"a": T["a"], "b": T["b"]}, [rename("a", "x")], "b: no rule of the format knows this key"),
        ({"a": T["a"]}, [rename("a", "x"), rename("a", "y")], "a: several rules match"),
        ({"a": T["a"]}, [Rule(("a", "b"), ("x",), stacked)], "b: missing, though a is there"),
        ({"a.7": T["a"]}, [Rule(("a.{i}", "b.{i}"), ("x",), stacked)], "b.7: missing, though a.7 is there"),
        ({"a": T["a"], "b": T["b"]}, [rename("a", "x"), rename("b", "x")], "x: filled twice"),
        ({"axb": T["a"]}, [rename("a.b", "x")], "axb: no rule"),  # a dot is a dot
        ({"a.1.2": T["a"]}, [rename("a.{i}", "x.{i}")], "a.1.2: no rule"),
        ({"a": T["a"]}, [rename("a", "y")], "y: the model has no such parameter"),
        ({"a": torch.zeros(3)}, [rename("a", "x")], r"x: shape \(3,\) in the checkpoint, \(2,\) in the model"),
        ({}, [rename("a", "x")], "x: the checkpoint does not fill this parameter"),
    ],
)
def test_what_does_not_fit_is_named(state: dict[str, Tensor], rules: list[Rule], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        convert(state, rules, expected={"x": T["a"]})


@pytest.fixture(scope="module")
def dinov2_file(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    config = ZOO["dinov2_vits14"].config
    shapes = {"cls_token": (1, 1, 384), "pos_embed": (1, 1 + 37 * 37, 384), "mask_token": (1, 384)}
    vit = tiny_vit(**vars(config))
    state = {k: v for k, v in vit.state_dict().items() if k not in ("cls_token", "pos_embed.table")}
    return {**state, **{k: torch.randn(shape) for k, shape in shapes.items()}}


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (lambda s: s.pop("blocks.3.ls1.gamma"), ["blocks.3.ls1.gamma: the checkpoint does not fill this parameter"]),
        (lambda s: s.pop("cls_token"), ["cls_token: missing, though pos_embed is there"]),
        (lambda s: s.update(surprise=torch.zeros(1)), ["surprise: no rule of the format knows this key"]),
        (
            lambda s: s.update({"norm.weight": torch.zeros(7)}),
            [r"norm.weight: shape \(7,\) in the checkpoint, \(384,\)"],
        ),
        (
            lambda s: s.update({"blocks.12.norm1.weight": torch.zeros(384)}),
            ["blocks.12.norm1.weight: the model has no"],
        ),
    ],
    ids=["missing", "half of a rule", "extra", "shape", "a block too many"],
)
def test_a_checkpoint_with_one_fault_is_refused_by_name(
    dinov2_file: dict[str, Tensor], tmp_path: Path, spoil: object, names: list[str]
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(dinov2_file, path)
    load_backbone("dinov2_vits14", weights=path)
    spoiled = dict(dinov2_file)
    spoil(spoiled)
    save_file(spoiled, path)
    for name in names:
        with pytest.raises(ConversionError, match=name):
            load_backbone("dinov2_vits14", weights=path)


def test_one_error_lists_both_sides(dinov2_file: dict[str, Tensor], tmp_path: Path) -> None:
    spoiled = {**dinov2_file, "surprise": torch.zeros(1), "norm.bias": torch.zeros(7)}
    del spoiled["blocks.3.mlp.fc1.bias"]
    save_file(spoiled, tmp_path / "weights.safetensors")
    with pytest.raises(ConversionError) as caught:
        load_backbone("dinov2_vits14", weights=tmp_path / "weights.safetensors")
    for fault in ("surprise: no rule", "blocks.3.mlp.fc1.bias: the checkpoint does not", "norm.bias: shape (7,)"):
        assert fault in str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_no_two_rules_of_a_format_name_the_same_key(name: str) -> None:
    sources = [source for rule in FORMATS[name] for source in rule.sources]
    assert len(sources) == len(set(sources))
