"""Every head keeps the contract: by name, sized by a spec, one forward for several, saved, errors that help."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from heads import (
    DenseHead,
    Head,
    Needs,
    attach,
    create_head,
    freeze,
    list_heads,
    load_head,
    register_head,
    registry,
    save_head,
)
from heads import base as heads_base
from heads.names import BUILT_IN
from tests.heads.small_heads import BACKBONES, DENSE, FITTING, OPTIONS, PAIRS, images, loss, make, multiple, tensors
from tests.helpers import randomise, relative_error, tiny_vit
from vitbackbone import (
    BackboneSpec,
    Features,
    FusedBackbone,
    Member,
    ViT,
    align,
    load_backbone,
)


def test_every_head_is_held_to_the_contract() -> None:
    assert OPTIONS.keys() == BUILT_IN.keys()
    assert set(list_heads()) >= BUILT_IN.keys()


@pytest.mark.parametrize(("name", "backbone"), PAIRS)
def test_a_head_runs_learns_and_comes_back(name: str, backbone: str, tmp_path: Path) -> None:
    model = BACKBONES[backbone]()
    head = make(name, model)
    step = multiple(head)
    size = (4 * step, 5 * step) if head.needs.grid_multiple > 1 else (61, 83)
    x = torch.stack(images(size, size, size))
    attached = attach(freeze(model), {"it": head}, image_size=size)

    output = tensors(attached(x)["it"])
    assert all(tensor.isfinite().all() for tensor in output)
    assert isinstance(head, DenseHead) == (name in DENSE)
    if name in DENSE:
        assert output[0].shape == (3, output[0].shape[1], *size)
    head.train()
    loss(head, attached.features(x)["it"]).backward()
    dead = [key for key, p in head.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not dead, f"parameters that no output depends on: {dead}"
    assert all(p.grad is None for p in model.parameters())

    head.eval()
    save_head(head, tmp_path, model)
    again = load_head(tmp_path, BACKBONES[backbone]())
    assert not again.training
    ours, theirs = tensors(attached(x)["it"]), tensors(attach(model, {"it": again}, image_size=size)(x)["it"])
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - FITTING.keys()))
def test_a_head_has_no_cls_where_it_reads_none(name: str) -> None:
    """Without CLS and registers it either runs, or says at once what is missing."""
    model = tiny_vit(depth=6, cls=False, pool="mean")
    head = make(name, model)
    size = (2 * multiple(head),) * 2
    if head.needs.prefix:
        with pytest.raises(ValueError, match=f"head 'it' reads the CLS token, and {model.spec.name} has none; use"):
            attach(model, {"it": head}, image_size=size)
    else:
        attach(model, {"it": head}, image_size=size)(torch.stack(images(size)))


@pytest.mark.parametrize("name", DENSE)
def test_dense_heads_of_mixed_sizes_equal_each_image_alone(name: str) -> None:
    model = BACKBONES["patch 14"]()
    head = make(name, model)
    batch = images((61, 83), (90, 30), (42, 56))
    attached = attach(model, {"it": head}).eval()
    with torch.inference_mode():
        together = attached(batch)["it"]
        assert together.shape[-2:] == (90, 83)
        for image, output in zip(batch, together, strict=True):
            height, width = image.shape[-2:]
            alone = attached(image[None])["it"][0]
            assert relative_error(output[:, :height, :width], alone) <= 1e-5
            assert not output[:, height:].any()
            assert not output[:, :, width:].any()


# ---- one forward --------------------------------------------------------------------------------------------------


class Mean(Head):
    """The mean of some layers' patches."""

    def __init__(self, spec: BackboneSpec, layers: tuple[int, ...], norm: bool = True, prefix: bool = False) -> None:
        super().__init__(spec, Needs(tuple(layers), norm, prefix))

    def forward(self, *features: Features) -> Tensor:
        return torch.stack([each.patches.mean(dim=(2, 3)) for each in features], dim=1)


@pytest.fixture
def counted() -> tuple[ViT, list[int]]:
    """A backbone, and the blocks that were run, in order."""
    model, ran = tiny_vit(depth=6), []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    return model, ran


def test_three_heads_take_one_forward_to_the_deepest_layer(counted: tuple[ViT, list[int]]) -> None:
    model, ran = counted
    wanted = {"a": ((1,), False), "b": ((3, 1), True), "c": ((2, 3), False)}
    heads = {name: Mean(model.spec, layers, norm) for name, (layers, norm) in wanted.items()}
    x = torch.stack(images((40, 24), (40, 24)))
    output = attach(model, heads)(x)
    assert ran == [0, 1, 2, 3]
    for name, (layers, norm) in wanted.items():
        separate = heads[name](*model.forward_layers(x, layers, norm=norm))
        assert torch.equal(output[name], separate)


def test_nothing_is_normed_that_no_head_reads(counted: tuple[ViT, list[int]]) -> None:
    model, _ = counted
    normed = []
    assert model.norm is not None
    model.norm.register_forward_hook(lambda *_: normed.append(True))
    attach(model, {"a": Mean(model.spec, (0, 4), norm=False)})(torch.stack(images((16, 16))))
    assert not normed
    attach(model, {"a": Mean(model.spec, (0, 4), norm=False), "b": Mean(model.spec, (4,))})(
        torch.stack(images((16, 16)))
    )
    assert len(normed) == 1


@pytest.mark.parametrize(
    ("layers", "depth", "indices"),
    [
        ("last", 12, [11]),
        ("penultimate", 12, [10]),
        ("last4", 12, [8, 9, 10, 11]),
        ("even4", 12, [2, 5, 8, 11]),
        ("even4", 24, [4, 11, 17, 23]),  # DINOv2's choice
        ("even4", 40, [9, 19, 29, 39]),
        ("even4", 5, [0, 1, 2, 4]),
        ((3, -1, 0), 12, [3, 11, 0]),
    ],
)
def test_layers_by_name(layers: Any, depth: int, indices: list[int]) -> None:
    spec = BackboneSpec("some", 8, depth, 1, 4, 0, True, True, (8, 8))
    assert list(Needs(layers).resolve(spec)) == indices


# ---- wrong use ----------------------------------------------------------------------------------------------------


class Square(Head):
    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec, Needs(grid_multiple=2))

    def forward(self, features: Features) -> Tensor:
        return features.tokens


def test_wrong_use_says_what_to_do() -> None:
    model, other = tiny_vit(depth=6), tiny_vit(depth=6, patch_size=16, num_registers=2)
    bare, raw = tiny_vit(cls=False, pool="mean"), tiny_vit(final_norm=False)
    with pytest.raises(ValueError, match="attach: no heads; want a dict of at least one"):
        attach(model, {})
    for wrong in ("", "a.b", "keys"):
        with pytest.raises(ValueError, match=f"'{wrong}' cannot name a head"):
            attach(model, {wrong: Mean(model.spec, (-1,))})
    with pytest.raises(
        ValueError, match=r"'a' was made for tiny, which is not tiny: strides .*16.*, not .*8.*registers"
    ):
        attach(model, {"a": Mean(other.spec, (-1,))})
    with pytest.raises(ValueError, match="'a' reads the CLS token, and tiny has none; use a head that reads patches"):
        attach(bare, {"a": Mean(bare.spec, (-1,), prefix=True)})
    with pytest.raises(ValueError, match=r"reads layers \[2\] with the final norm, and .* none .*norm=False"):
        attach(raw, {"a": Mean(raw.spec, (-1,))})
    with pytest.raises(ValueError, match="tiny has 3 layers, and a head that reads 'last4' needs at least 4"):
        create_head("multilayer", tiny_vit().spec, num_classes=3)
    with pytest.raises(ValueError, match="layers='first'; want indices, or one of last, penultimate, last4, even4"):
        Needs("first")


def test_what_no_type_check_would_let_pass_is_refused_too() -> None:
    """In a process of its own, without the type checks of the tests, which would come first."""
    code = (
        "from torch.nn import Linear\n"
        "from heads import attach, register_head\n"
        "from vitbackbone import load_backbone\n"
        "for make, text in ((lambda: attach(load_backbone('nano'), {'a': Linear(1, 1)}), 'want a heads.Head'),\n"
        "                   (lambda: register_head('x')(Linear), 'want a subclass of heads.Head')):\n"
        "    try: make()\n"
        "    except ValueError as e: assert text in str(e), e\n"
        "    else: raise SystemExit(f'nothing said {text}')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_grid_that_does_not_divide_is_refused_at_attach_and_at_each_call() -> None:
    model = tiny_vit(image_size=(24, 32))  # 3 x 4 patches
    head = Square(model.spec)
    with pytest.raises(
        ValueError, match=r"sides divisible by 2; images of 24 x 32 give 3 x 4 .*Pass attach.*, for example 32 x 32"
    ):
        attach(model, {"a": head})
    attached = attach(model, {"a": head}, image_size=(32, 48))
    assert attached(torch.zeros(1, 3, 25, 41))["a"].shape == (1, 24, 16)  # padded to 4 x 6
    with pytest.raises(
        ValueError, match=r"images of 40 x 16 give 5 x 2 patches. Resize the images, for example 48 x 16"
    ):
        attached(torch.zeros(1, 3, 40, 16))
    with pytest.raises(ValueError, match="images of 40 x 16 give 5 x 2"):
        attached([torch.zeros(3, 16, 16), torch.zeros(3, 40, 16)])


def test_wrong_names_and_options() -> None:
    spec = tiny_vit(depth=4).spec
    with pytest.raises(ValueError, match="unknown head 'liner', did you mean .*'linear'.* Want one of .*multilayer"):
        create_head("liner", spec)
    with pytest.raises(ValueError, match="'linear' has no option 'classes' and needs num_classes; its options"):
        create_head("linear", spec, classes=3)
    with pytest.raises(ValueError, match="head 'linear' needs num_classes; its options are num_classes: int, layers"):
        create_head("linear", spec)


# ---- names of others ----------------------------------------------------------------------------------------------


def test_a_head_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    assert register_head("mean")(Mean) is Mean
    assert "mean" in list_heads()
    head = create_head("mean", tiny_vit().spec, layers=[0, 1])
    assert isinstance(head, Mean)
    assert head.name == "mean"
    register_head("mean")(Mean)  # a module that is loaded again
    with pytest.raises(ValueError, match="the name 'mean' is taken by another head"):
        register_head("mean")(Square)
    with pytest.raises(ValueError, match="the name 'linear' is taken by another head"):
        register_head("linear")(Mean)


PACKAGE = """
from torch import Tensor, nn
from heads import Head, Needs
from vitbackbone import BackboneModule, BackboneSpec, Features


class Brightness(Head):
    def __init__(self, spec: BackboneSpec, outputs: int = 2) -> None:
        super().__init__(spec, Needs("penultimate", norm=False))
        self.linear = nn.Linear(spec.dim, outputs)

    def forward(self, features: Features) -> Tensor:
        return self.linear(features.tokens.mean(dim=1))
"""

USE = """
import sys, torch
from heads import attach, create_head, list_heads, load_head, save_head
from vitbackbone import load_backbone

assert "brightness" in list_heads()
backbone = load_backbone("nano")
head = create_head("brightness", backbone.spec, outputs=3)
x = torch.randn(1, 3, 32, 40)
out = attach(backbone, {"b": head})(x)["b"]
assert out.shape == (1, 3)
save_head(head, sys.argv[1], backbone)
assert torch.equal(attach(backbone, {"b": load_head(sys.argv[1], backbone)})(x)["b"], out)
try:
    create_head("broken", backbone.spec)
except ValueError as error:
    print(error)
"""


def test_a_head_of_another_package_is_known_once_it_is_installed(tmp_path: Path) -> None:
    info = "brightness-1.0.dist-info"
    files = {
        "brightness_head.py": PACKAGE,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: brightness\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[vitbackbone.heads]\nbrightness = brightness_head:Brightness\nbroken = math:pi\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    wheel = tmp_path / "brightness-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, wheel]
    subprocess.run(command, check=True)
    path = os.pathsep.join([str(site), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", USE, tmp_path / "head"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "head 'broken' of math:pi is not a subclass of heads.Head" in done.stdout


# ---- freezing -----------------------------------------------------------------------------------------------------


def test_a_frozen_backbone_stays_frozen() -> None:
    model = freeze(load_backbone("nano"))  # it has batch norms
    attached = attach(model, {"a": create_head("linear", model.spec, num_classes=2)}).train()
    assert attached.heads["a"].training
    assert not any(part.training for part in model.modules())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in attached.parameters() if p.requires_grad], lr=1.0)
    attached(torch.randn(2, 3, 32, 32))["a"].square().sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.train() is model
    assert not any(part.training for part in model.modules())
    assert load_backbone("nano").train().training  # another one is not


# ---- maps of other strides ----------------------------------------------------------------------------------------


def test_maps_of_other_strides_are_aligned_on_the_first() -> None:
    fine, coarse = tiny_vit(patch_size=4, image_size=(32, 32)), tiny_vit(patch_size=8)
    both = FusedBackbone([Member(fine, -1, True), Member(coarse, -1, True)])
    x = torch.stack(images((30, 22)))
    a, b = fine(x), coarse(x)
    head = randomise(create_head("linear", both.spec, num_classes=4))
    stacked = torch.cat([a.patches, align(b, a.geometry)], dim=1)
    want = heads_base.enlarge(head.classifier(head.bn(stacked)), a.geometry)
    assert relative_error(attach(both, {"a": head})(x)["a"], want) <= 1e-6
