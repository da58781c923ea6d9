"""The rule engine is strict on both sides, and one error lists what is wrong."""

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import tiny_vit
from vitbackbone import ConversionError, load_backbone
from vitbackbone.checkpoints.faults import MOST_LINES
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.formats.openvla import split_openvla
from vitbackbone.checkpoints.rules import Change, Rule, both, convert, drop, inside, read_only, rename, revert
from vitbackbone.checkpoints.zoo import ZOO

T = {name: torch.full((2,), float(i)) for i, name in enumerate("abcdef")}


stacked = Change(lambda *parts: (torch.stack(parts),), lambda whole: tuple(whole))
halved = Change(lambda x: (x[:1], x[1:]), lambda a, b: (torch.cat([a, b]),))


def test_rules_rename_join_split_and_drop() -> None:
    state = {f"layer.{n}.{part}": T[letter] for n, part, letter in [(0, "q", "a"), (0, "k", "b"), (11, "q", "c")]}
    state |= {"layer.11.k": T["d"], "x": T["e"], "y": T["f"]}
    rules = [
        Rule(("layer.{i}.q", "layer.{i}.k"), ("blocks.{i}.qk",), stacked),
        Rule(("x",), ("first", "second"), halved),
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
        ({"a": T["a"]}, [rename("a", "x"), rename("a", "x")], "a: several rules match"),
        ({"a": T["a"]}, [Rule(("a", "b"), ("x",), stacked)], "b: missing, though a is there"),
        ({"a.7": T["a"]}, [Rule(("a.{i}", "b.{i}"), ("x",), stacked)], "b.7: missing, though a.7 is there"),
        ({"a": T["a"], "b": T["b"]}, [rename("a", "x"), rename("b", "x")], "x: filled twice"),
        ({"axb": T["a"]}, [rename("a.b", "x")], "axb: no rule"),  # a dot is a dot
        ({"a.1.2": T["a"]}, [rename("a.{i}", "x.{i}")], "a.1.2: no rule"),
        ({"a": T["a"]}, [rename("a", "y")], "a: the model has no such parameter, y"),
        ({"a": torch.zeros(3), "b": T["b"]}, [Rule(("a", "b"), ("x",), stacked)], r"a \(3,\), b \(2,\): these shapes"),
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
            ["blocks.12.norm1.weight: the model has no such parameter"],
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


def test_a_rule_applies_where_the_model_has_its_targets() -> None:
    """One table serves a plain MLP and a gated one, whose files share a key."""
    table = [rename("up", "fc1"), Rule(("gate", "up"), ("w12",), stacked)]
    assert torch.equal(convert({"up": T["a"]}, table, {"fc1": T["a"]})["fc1"], T["a"])
    gated = torch.stack([T["b"], T["a"]])
    assert torch.equal(convert({"up": T["a"], "gate": T["b"]}, table, {"w12": gated})["w12"], gated)
    with pytest.raises(ConversionError, match="gate: the model has no such parameter, w12"):
        convert({"up": T["a"], "gate": T["b"]}, table, {"fc1": T["a"]})


def test_a_target_in_every_block_is_filled_from_one_key() -> None:
    want = {f"blocks.{i}.table": T["a"] for i in (0, 3, 11)}
    table = [rename("shared", "blocks.{i}.table")]
    got = convert({"shared": T["a"]}, table, want)
    assert got.keys() == want.keys()
    assert len({tensor.data_ptr() for tensor in got.values()}) == 3  # or an optimiser's step in one is one in all
    assert revert(want, table).keys() == {"shared"}
    with pytest.raises(ConversionError, match="shared: the blocks differ"):
        revert({**want, "blocks.3.table": T["b"]}, table)
    with pytest.raises(ConversionError, match="shared: the model has no such parameter"):
        convert({"shared": T["a"]}, table, {"other": T["a"]})


def test_a_rest_matches_anything_and_empty_tensors_are_nothing() -> None:
    state = {"text.a.0": T["a"], "text.b": T["b"], "x": T["c"], "registers": torch.zeros(1, 0, 8)}
    rules = [drop("text.{rest}"), rename("x", "y"), rename("registers", "reg_token")]
    assert convert(state, rules, {"y": T["c"]}).keys() == {"y"}
    with pytest.raises(ConversionError, match="registers: no rule"):
        convert(state, rules[:2], {"y": T["c"]})
    with pytest.raises(ConversionError, match="textual: no rule"):
        convert({"textual": T["a"]}, [drop("text.{rest}")], {})


def test_backwards_it_gives_the_checkpoint_back() -> None:
    table = [
        Rule(("l.{i}.q", "l.{i}.k"), ("blocks.{i}.qk",), stacked),
        Rule(("x",), ("first", "second"), halved),
        *inside("deep.", both("norm", "n")),
        *read_only([rename("old", "n.weight")]),
        drop("mask"),
    ]
    state = {f"l.{i}.{part}": T[x] for i, part, x in [(0, "q", "a"), (0, "k", "b"), (11, "q", "c"), (11, "k", "d")]}
    state |= {"x": T["e"], "deep.norm.weight": T["a"], "deep.norm.bias": T["b"]}
    there = convert({**state, "mask": T["f"]}, table, shapes_of(state))
    back = revert(there, table)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def shapes_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    pair = torch.zeros(2, 2)
    return {
        **{f"blocks.{i}.qk": pair for i in (0, 11)},
        "first": state["x"][:1],
        "second": state["x"][1:],
        "n.weight": T["a"],
        "n.bias": T["a"],
    }


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "x: the format has no place for it"),
        ([rename("a", "x"), rename("b", "x")], "x: the format has more than one place for it"),
        ([Rule(("a",), ("x", "y"), halved)], "x: the format has no place for it"),
        ([Rule(("a",), ("x",), Change(lambda a: (a,)))], "a: cannot be computed from the model's parameters alone"),
        (list(read_only([rename("a", "x")])), "x: the format has no place for it"),
    ],
)
def test_what_has_no_place_in_a_format_is_named(rules: list[Rule], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        revert({"x": T["a"]}, rules)


# ---- hostile checkpoints ------------------------------------------------------------------------------------------

HOSTILE_KEYS = {
    "unknown": "surprise.{}.x",
    "of another model": "blocks.{}.norm1.weight",
    "half of a rule": "blocks.{}.q",
    "many numbers": "blocks.{}" + ".1" * 5000,
    "long numbers": "blocks.{}" + "1" * 5000 + ".norm1.weight",
    "control characters": "\x1b[31m\n{}",
    "part of nothing": "vision_backbone.featurizer{}",
}


@pytest.mark.parametrize("template", HOSTILE_KEYS.values(), ids=HOSTILE_KEYS)
def test_many_wrong_keys_are_a_short_error_soon(template: str) -> None:
    """Every further key costs little, and the error says how many there are."""
    count = 20_000 if len(template) < 100 else 500
    one = torch.zeros(2)
    state = {template.format(n): one for n in range(count)}
    rules = [*FORMATS["timm"], Rule(("blocks.{i}.q", "blocks.{i}.k"), ("blocks.{i}.qk",), stacked)]
    expected = {f"blocks.{n}.qk": one for n in range(count)} if template.endswith(".q") else {"x": one}
    for call in (lambda: convert(state, rules, expected), lambda: split_openvla(state)):
        began = time.process_time()
        with pytest.raises(ConversionError, match=r"and [\d,]+ more") as caught:
            call()
        assert time.process_time() - began < 10
        lines = str(caught.value).split("\n")
        assert len(lines) <= 3 * MOST_LINES + 4
        assert len(str(caught.value)) <= 1000
        assert "\x1b" not in str(caught.value)


def test_a_short_list_of_one_kind_does_not_hide_another() -> None:
    state = {f"a.{n}": T["a"] for n in range(1000)}
    with pytest.raises(ConversionError, match="x: the checkpoint does not fill this parameter; y is missing"):
        convert(state, [rename("y", "x")], {"x": T["a"]})


def test_no_template_of_a_format_mixes_a_number_and_a_rest() -> None:
    sources = [source for rules in FORMATS.values() for rule in rules for source in rule.sources]
    assert all(source.count("{i}") + source.count("{rest}") <= 1 for source in sources)
    assert all(source.endswith("{rest}") for source in sources if "{rest}" in source)


D, N = 12, 9
QKV, FLAX_ATTENTION = ("query", "key", "value"), "Transformer/encoderblock_0/MultiHeadDotProductAttention_1"
UNEVEN = {  # case: (format, shapes of the sources of one rule)
    "CLS of one number": ("timm", {"cls_token": (1, 1, 1), "pos_embed": (1, 1 + N, D)}),
    "CLS without a batch": ("timm", {"cls_token": (D,), "pos_embed": (1, 1 + N, D)}),
    "a batch of positions": ("timm", {"cls_token": (1, 1, D), "pos_embed": (2, 1 + N, D)}),
    "a batch of positions alone": ("timm_no_embed_class", {"pos_embed": (2, N, D)}),
    "CLIP's CLS of one number": ("clip", {"visual.class_embedding": (1,), "visual.positional_embedding": (1 + N, D)}),
    "CLIP's CLS as a scalar": ("clip", {"visual.class_embedding": (), "visual.positional_embedding": (1 + N, D)}),
    "a distillation token of one number": (
        "timm_distilled",
        {"cls_token": (1, 1, D), "dist_token": (1, 1, 1), "pos_embed": (1, 2 + N, D)},
    ),
    "q longer than k": (
        "ViTModel",
        {
            f"encoder.layer.0.attention.attention.{part}.weight": (rows, D)
            for part, rows in zip(QKV, (14, 12, 10), strict=True)
        },
    ),
    "a gate longer than its value": ("dinov3", {"blocks.0.mlp.w1.weight": (7, D), "blocks.0.mlp.w2.weight": (5, D)}),
    "Flax's q longer than k": (
        "flax",
        {f"{FLAX_ATTENTION}/{part}/kernel": (D, heads, 4) for part, heads in zip(QKV, (4, 3, 2), strict=True)},
    ),
    "Flax's biases of other lengths": (
        "flax",
        {f"{FLAX_ATTENTION}/{part}/bias": (heads, 4) for part, heads in zip(QKV, (4, 3, 2), strict=True)},
    ),
    "a mask of one number": ("dinov3", {"blocks.0.attn.qkv.bias": (3 * D,), "blocks.0.attn.qkv.bias_mask": (1,)}),
    "a flat grid": ("sam", {"image_encoder.pos_embed": (1, 1, N, D)}),
}


@pytest.mark.parametrize(("name", "shapes"), UNEVEN.values(), ids=UNEVEN)
def test_shapes_that_would_broadcast_or_add_up_are_refused(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    expected = {
        **{name: torch.zeros(1, 1, D) for name in ("cls_token", "reg_token")},
        "pos_embed.table": torch.zeros(N, D),
        "blocks.0.attn.qkv.weight": torch.zeros(3 * D, D),
        "blocks.0.attn.qkv.bias": torch.zeros(3 * D),
        "blocks.0.attn.q_bias": torch.zeros(D),
        "blocks.0.attn.v_bias": torch.zeros(D),
        "blocks.0.mlp.w12.weight": torch.zeros(D, D),
    }
    if name == "dinov3":  # which has a mask in place of the bias of k
        del expected["blocks.0.attn.qkv.bias"]
    with pytest.raises(ConversionError, match="these shapes do not go together"):
        convert({key: torch.ones(shape) for key, shape in shapes.items()}, FORMATS[name], expected)
