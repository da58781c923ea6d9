"""Invalid options of heads are refused at once, in the words of the caller: each option of each head."""

import inspect
import math
import subprocess
import sys
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
import torch
from torch import nn

from heads import Head, Needs, create_head, freeze, list_heads, register_head
from heads.options import check, hints_of
from heads.registry import _find
from tests.heads.small_heads import BACKBONES, FITTING, OPTIONS
from tests.helpers import tiny_vit
from vitbackbone import BackboneSpec

NAMES = sorted(OPTIONS)
WRONG: dict[str, list[Any]] = {  # of each kind of option, by what its annotation allows
    "int": [True, 2.0, math.nan, "3", b"3", [1], {1}, torch.tensor(2), 10**30],
    "count": [0, -1],
    "float": [True, math.nan, math.inf, "0.1", [0.1]],
    "bool": [1, 0, "yes", 0.0],
    "literal": ["lastt", "", 7, True],
    "layers": [[], [0.0], [True], ["0"], [99], [-99], [0, 0], [-1, 5], 3.5, {}],
}


def kinds(hint: Any) -> set[str]:
    """The kinds of values that an annotation allows."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        inner = kinds(parts[0])
        return inner | {"count"} if "ge=1" in repr(parts[1:]) and inner == {"int"} else inner
    if origin in (Union, UnionType):
        return set().union(*map(kinds, parts))
    if origin is Literal:
        return {"literal"}
    if hint is NoneType:
        return {"none"}
    return {hint.__name__} if hint in (int, float, bool) else {"layers"} if origin is not None else {hint.__name__}


def cases() -> list[Any]:
    """Every option of every head with every wrong value. Quick are one value for each option and each value once."""
    found: list[Any] = []
    seen: set[str] = set()
    options = 0
    for name in NAMES:
        for option, hint in hints_of(_find(name).__init__).items():
            if option == "spec":
                continue
            allowed = kinds(hint)
            assert allowed <= WRONG.keys() | {"none"}, f"{name}: {option} has no type that is checked"
            wrong = [each for kind in ("int", "count", "float", "bool") if kind in allowed for each in WRONG[kind]]
            if allowed & {"literal", "layers"}:
                wrong = WRONG["literal"] + (WRONG["layers"] if "layers" in allowed else [])
            wrong += [] if "none" in allowed else [None]
            for i, each in enumerate(wrong):
                marks = [] if i == options % len(wrong) or repr(each) not in seen else [pytest.mark.slow]
                found.append(pytest.param(name, option, each, id=f"{name} {option}={each!r}"[:60], marks=marks))
                seen.add(repr(each))
            options += 1
    return found


SPECS = {name: BACKBONES[FITTING.get(name, ["patch 8"])[0]]().spec for name in NAMES}


@pytest.mark.parametrize(("name", "option", "value"), cases())
def test_a_value_that_cannot_be_is_refused(name: str, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option) as raised:
        create_head(name, SPECS[name], **{**OPTIONS[name], option: value})
    assert "want" in str(raised.value)


@pytest.mark.parametrize("name", NAMES)
def test_constructors_check_as_well(name: str) -> None:
    for option in hints_of(_find(name).__init__):
        if option != "spec":
            with pytest.raises(ValueError, match=rf"{_find(name).__name__}: {option}="):
                _find(name)(SPECS[name], **{**OPTIONS[name], option: {1}})
    with pytest.raises(ValueError, match="spec=.*; want a BackboneSpec"):
        _find(name)(nn.Identity(), **OPTIONS[name])


@pytest.mark.parametrize("name", NAMES)
def test_numpys_numbers_are_numbers(name: str) -> None:
    options = {key: np.int64(value) if type(value) is int else value for key, value in OPTIONS[name].items()}
    assert create_head(name, SPECS[name], **options).config == OPTIONS[name]


def test_every_head_declares_what_its_options_take() -> None:
    for name in list_heads():
        parameters = list(inspect.signature(_find(name)).parameters)[1:]
        assert set(parameters) <= hints_of(_find(name).__init__).keys(), name


class Another(Head):
    """A head of another package: plain annotations, and one that only its author can check."""

    def __init__(self, spec: BackboneSpec, sizes: tuple[int, ...] = (1,), act: Any = None, **more: Any) -> None:
        super().__init__(spec, Needs())
        self.sizes, self.more = sizes, more


def test_a_head_of_others_is_held_to_its_annotations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heads.registry._registered", {})
    register_head("another")(Another)
    spec = tiny_vit().spec
    assert create_head("another", spec, sizes=[1, 2], act=nn.GELU(), anything=3).more == {"anything": 3}
    with pytest.raises(ValueError, match=r"head 'another': sizes=\[1, 2.0\]; want a list of int"):
        create_head("another", spec, sizes=[1, 2.0])


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"num_classes=0; want an integer from 1.*channels='x'; want an integer"):
        create_head("dpt", SPECS["dpt"], num_classes=0, channels="x")
    with pytest.raises(
        ValueError, match=r"has no option 'num_clases', did you mean 'num_classes' or .*\?; its options are"
    ):
        create_head("linear", SPECS["linear"], num_classes=2, num_clases=3)
    with pytest.raises(ValueError, match=r"form='fuse'.*did you mean 'fused'"):
        create_head("token_projector", SPECS["linear"], width=2, form="fuse")
    assert check("x", {"a": int}, {"a": np.int8(3), "b": 4}) == {"a": 3, "b": 4}


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("name", ["dpt", "dpt_depth", "upernet", "multilayer"])
def test_heads_on_four_layers_want_four(name: str, depth: int) -> None:
    options = {"num_classes": 3} if name != "dpt_depth" else {}
    with pytest.raises(ValueError, match=rf"tiny has {depth} layers, and a head that reads '.*4' needs at least 4"):
        create_head(name, tiny_vit(depth=depth).spec, **options)


@pytest.mark.parametrize("depth", [4, 5, 7, 12, 24])
def test_even4_is_four_layers_shallow_first(depth: int) -> None:
    layers = list(Needs("even4").resolve(tiny_vit(depth=depth).spec))
    assert layers == sorted(set(layers))
    assert len(layers) == 4


# Without the type checks of the tests, which would come first.
CALLS = """
import numpy as np, timm, torch
from heads import *
from heads.adapters.torchvision import as_torchvision
from vitbackbone import ViT, ViTConfig

def vit():
    return ViT(ViTConfig(image_size=(32, 32), patch_size=8, dim=16, depth=4, num_heads=2, mlp_dim=32), name="tiny")

v = vit()
head = create_head("mlp", v.spec, num_classes=3)
other = timm.create_model("test_vit", num_classes=0)
scores, depth, logits = torch.randn(1, 3, 4, 4), torch.rand(1, 1, 4, 4) + 1, torch.randn(2, 3)
labels = torch.zeros(1, 4, 4, dtype=torch.long)
calls = {
    "want a dict of heads": lambda: attach(v, head),
    "want a dict of heads ": lambda: attach(v, [head]),
    "no heads": lambda: attach(v, {}),
    "the backbone is a timm": lambda: attach(other, {"a": head}),
    "that is the head's part": lambda: attach(head, {"a": head}),
    "the backbone is a builtins.str": lambda: attach("nano", {"a": head}),
    "image_size=": lambda: attach(v, {"a": head}, image_size=32),
    "image_size= ": lambda: attach(v, {"a": head}, image_size=(0, 32)),
    "cannot name a head": lambda: attach(v, {3: head}),
    "want a heads.Head": lambda: attach(v, {"a": torch.nn.Linear(1, 1)}),
    "spec is a ViT; want a BackboneSpec: backbone.spec": lambda: create_head("mlp", v, num_classes=3),
    "the name of a head": lambda: create_head(3, v.spec),
    "the name is ''": lambda: register_head("")(type(head)),
    "freeze(model.backbone)": lambda: freeze(attach(v, {"a": head})),
    "want only a backbone": lambda: freeze(head),
    "freeze was given a timm": lambda: freeze(other),
    "freeze was given a builtins.str": lambda: freeze("nano"),
    "freeze was given a torch.nn": lambda: freeze(torch.nn.Sequential(v)),
    "labels is a numpy.ndarray": lambda: segmentation_loss(scores, labels.numpy()),
    "labels are torch.float32": lambda: segmentation_loss(scores, labels.float()),
    "labels are torch.bool": lambda: segmentation_loss(scores, labels.bool()),
    "labels have shape": lambda: segmentation_loss(scores, labels[0]),
    "labels hold [3]": lambda: segmentation_loss(scores, labels + 3),
    "without an image": lambda: segmentation_loss(scores[:0], labels[:0]),
    "ignore_index=True": lambda: segmentation_loss(scores, labels, True),
    "pass another ignore_index": lambda: segmentation_loss(torch.randn(1, 256, 4, 4), labels),
    "logits is a numpy": lambda: segmentation_loss(scores.numpy(), labels),
    "target is a numpy": lambda: scale_invariant_loss(depth, depth.numpy()),
    "target has shape": lambda: scale_invariant_loss(depth, depth[0]),
    "labels is a numpy": lambda: classification_loss(logits, np.zeros(2, dtype=int)),
    "labels are torch.int64 of shape": lambda: classification_loss(logits, torch.zeros(3, dtype=torch.long)),
    "labels hold [5]": lambda: classification_loss(logits, torch.tensor([0, 5])),
    "for at least one image": lambda: classification_loss(logits[:0], torch.zeros(0, dtype=torch.long)),
    "images is": lambda: attach(v, {"a": head})(None),
    "images has shape": lambda: attach(v, {"a": head})(torch.zeros(0, 3, 32, 32)),
    "targets is a Tensor": lambda: attach(v, {"a": head})(torch.zeros(1, 3, 32, 32), labels),
    "save_head was given a Linear": lambda: save_head(torch.nn.Linear(1, 1), "/nonexistent", v),
    "save_head: the backbone": lambda: save_head(head, "/nonexistent", other),
    "load_head: the backbone": lambda: load_head("/nonexistent", other),
    "the backbone is": lambda: as_torchvision(other),
    "want a pyramid": lambda: as_torchvision(v, head),
    "grid_multiple=0": lambda: Needs(grid_multiple=0),
    "norm=1": lambda: Needs(norm=1),
    "no cameras": lambda: CameraEncoder({}, v, head),
    "front=32": lambda: CameraEncoder({"front": 32}, v, head),
    "camera 'front': attach: the backbone is": lambda: CameraEncoder({"front": (32, 32)}, other, head),
}
for text, call in calls.items():
    try:
        call()
    except ValueError as error:
        if text.strip() not in str(error):
            print(f"{text!r}: {error}")
    except Exception as error:
        print(f"{text!r}: {type(error).__name__} {error}")
    else:
        print(f"{text!r}: taken")
"""


def test_wrong_calls_are_refused_in_the_callers_words() -> None:
    done = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True, check=True)
    assert not done.stdout, done.stdout


def test_what_is_frozen_by_itself_stays_so() -> None:
    vit = freeze(tiny_vit())
    nn.Sequential(vit).train()
    assert not any(part.training for part in vit.modules())
