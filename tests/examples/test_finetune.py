"""The recipe of fine-tuning and the training loop of the examples: what learns, how fast, and what is written."""

import io
from dataclasses import replace
from pathlib import Path

import finetune
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import training
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from heads import attach, create_head, load_head
from tests.helpers import photo, randomise, relative_error, save_photo, tiny_vit
from vitbackbone import fingerprint, load_backbone

SETTINGS = training.Settings(steps=10, lr=0.5, weight_decay=0.1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(24):
        save_photo(folder / ["cat", "dog", "owl"][i % 3] / f"{i:02}.png", 36 + i, 52, seed=i)
    return folder


def arguments(photos: Path, out: Path, *more: str) -> list[str]:
    return [str(photos), "--out", str(out), "--steps", "3", "--batch-size", "4", "--resolution", "16", *more]


# ---- the modes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(finetune.LR))
def test_what_a_mode_trains_is_what_it_writes(mode: str, photos: Path, tmp_path: Path) -> None:
    result = finetune.run(finetune.parse(arguments(photos, tmp_path, "--mode", mode, "--test", "0.25")))
    assert (result["trained_on"], result["tested_on"]) == (18, 6)
    weights = tmp_path / "backbone.safetensors"
    assert weights.exists() == (mode != "frozen")

    backbone = load_backbone("nano", weights if weights.exists() else None)
    head = load_head(tmp_path / "head", backbone)  # refuses any other backbone than the trained one
    assert head.linear.weight.any()
    data = finetune.read_photos(photos, slice(None))
    test = np.flatnonzero(finetune.draw(data.labels, 0.25, seed=0))
    with torch.no_grad():
        images = torch.stack([backbone.preprocess(data.image(row), 16) for row in test])
        best = attach(backbone, {"classes": head})(images)["classes"].argmax(1)
    assert (best.numpy() == data.labels[test]).mean() == result["accuracy"]

    before, after = load_backbone("nano").state_dict(), backbone.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    learned = {name for name, _ in backbone.named_parameters()}
    adapted = {f"blocks.{i}.attn.{layer}.weight" for i in range(5) for layer in ("qkv", "proj")}
    if mode == "frozen":
        assert not changed
    elif mode == "lora":
        assert changed == adapted
        ranks = [torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3).item() for name in adapted]
        assert max(ranks) <= 8
    else:
        assert learned <= changed
        distance = max((after[name] - before[name]).abs().max().item() for name in learned)
        assert distance < 0.05 if mode == "full" else distance > 0.5  # near the weights that it started from


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_folder_holds_one_run(mode: str, photos: Path, tmp_path: Path) -> None:
    command = arguments(photos, tmp_path, "--mode", mode)
    first = finetune.run(finetune.parse(command))
    weights = load_file(tmp_path / "backbone.safetensors")
    assert finetune.run(finetune.parse(command)) == first  # trains no further
    again = load_file(tmp_path / "backbone.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    with pytest.raises(SystemExit, match=f"holds a run with mode {mode}, not frozen; give another --out"):
        finetune.run(finetune.parse([*command, "--mode", "frozen"]))


def test_another_seed_and_share_take_other_labels_and_the_same_test(photos: Path) -> None:
    labels = finetune.read_photos(photos, slice(None)).labels
    quarter = finetune.draw(labels, 0.25, seed=0)
    assert np.bincount(labels[quarter]).tolist() == [2, 2, 2]
    assert (finetune.draw(labels, 0.25, seed=0) == quarter).all()
    assert (finetune.draw(labels, 0.25, seed=1) != quarter).any()
    assert np.bincount(labels[finetune.draw(labels, 0.01, seed=0)]).tolist() == [1, 1, 1]


def test_parquet_rows(tmp_path: Path) -> None:
    images = []
    for i in range(20):
        buffer = io.BytesIO()
        photo(8, 8, seed=i).save(buffer, format="PNG")
        images.append(buffer.getvalue())
    pq.write_table(
        pa.table({"image": images, "label": pa.array([i % 2 for i in range(20)], pa.int8())}), tmp_path / "a.parquet"
    )
    data = finetune.read_photos(tmp_path / "a.parquet", finetune.parse(["a", "--out", "b", "--rows", "4::5"]).rows)
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert np.array_equal(np.asarray(data.image(1)), np.asarray(photo(8, 8, seed=9)))


def test_batches_are_a_function_of_the_step_and_show_every_photo_equally_often(photos: Path) -> None:
    data, backbone = finetune.read_photos(photos, slice(None)), tiny_vit()
    rows = np.arange(24)

    def batches(*options: str) -> finetune.Batches:
        return finetune.Batches(
            data, rows, backbone, finetune.parse(["x", "--out", "y", "--batch-size", "8", *options])
        )

    plain = batches("--mix", "0")
    labels = torch.cat([plain(step)[1] for step in range(6)])
    assert labels.bincount().tolist() == [16, 16, 16]
    assert labels[:24].tolist() != labels[24:].tolist()
    torch.manual_seed(0)
    first = plain(4)
    torch.manual_seed(0)
    again = batches("--mix", "0")(4)
    assert torch.equal(first[0], again[0])
    assert first[0].shape == (8, 3, 32, 32)
    images, soft = batches("--mix", "1")(0)
    assert images.shape == (8, 3, 32, 32)
    torch.testing.assert_close(soft.sum(1), torch.ones(8))
    assert (soft.max(1).values < 1).any()


def test_drop_path_grows_with_depth() -> None:
    backbone = tiny_vit()
    finetune.set_drop_path(backbone, 0.4)
    assert [block.drop_path.rate for block in backbone.blocks] == [0, 0.2, 0.4]
    assert fingerprint(backbone) == fingerprint(tiny_vit())  # no feature depends on it


def test_a_run_trains_what_its_mode_says(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def spy(model: nn.Module, groups: training.Groups, *_: object) -> None:
        learned = {id(p) for p in model.parameters() if p.requires_grad}
        assert {id(p) for group in groups for p in group["params"]} == learned
        blocks = model.backbone.blocks
        seen[mode] = blocks.training, [block.drop_path.rate for block in blocks], {group["lr"] for group in groups}

    monkeypatch.setattr(finetune, "fit", spy)
    for mode in finetune.LR:
        options = ["--mode", mode, "--lr", "1", "--drop-path", "0.4", "--layer-decay", "0.5"]
        finetune.run(finetune.parse([*arguments(photos, tmp_path / mode), *options]))
    rates = pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert seen["frozen"] == (False, [0] * 5, {1})
    assert seen["lora"] == seen["scratch"] == (True, rates, {1})
    assert seen["full"] == (True, rates, {0.5**i for i in range(7)})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--rows", "0:8"], "at least two classes"),
        (["--test", "1"], "nothing is left"),
        (["--mode", "full", "--backbone", "timm:resnet10t", "--weights", "random"], "use --mode frozen"),
    ],
    ids=["one class", "no photo", "ResNet"],
)
def test_what_cannot_be_is_refused(options: list[str], match: str, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=match):
        finetune.run(finetune.parse([*arguments(photos, tmp_path), *options]))


# ---- LoRA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"qkv_bias": "none"}], ids=str)
def test_adapters_take_part_learn_and_merge(fields: dict[str, str]) -> None:
    backbone, images = tiny_vit(**fields), torch.randn(2, 3, 32, 24)
    plain = backbone(images).cls.detach()
    peft = finetune.add_adapters(backbone, rank=2)
    trained = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    assert len(trained) == 3 * 2 * 2  # blocks, layers, factors
    assert torch.equal(backbone(images).cls, plain)  # the second factor starts at zero
    with torch.no_grad():
        for parameter in trained.values():
            parameter.normal_(std=0.3)
    adapted = backbone(images)
    adapted.cls.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())
    merged = peft.merge_and_unload()
    assert merged is backbone
    assert relative_error(backbone(images).cls, adapted.cls) < 1e-5
    assert relative_error(plain, adapted.cls) > 0.1
    assert backbone.state_dict().keys() == tiny_vit(**fields).state_dict().keys()


def test_adapters_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(SystemExit, match="tiny adds biases of its own.*use --mode full"):
        finetune.add_adapters(tiny_vit(qkv_bias="qv"), rank=2)


# ---- groups and the loop --------------------------------------------------------------------------------------------


KINDS = {
    "vit": {},
    "registers and LayerScale": {"num_registers": 2, "layer_scale": True},
    "BEiT": {"qkv_bias": "qv", "position": "none", "relative_position": "table"},
    "SAM": {"cls": False, "pool": "neck", "neck_dim": 8, "window": 2, "relative_position": "decomposed"},
    "SigLIP": {"cls": False, "pool": "map"},
    "CLIP": {"pre_norm": True, "projection_dim": 8},
}


@pytest.mark.parametrize("kind", KINDS)
def test_groups_hold_every_parameter_once(kind: str) -> None:
    backbone = tiny_vit(**KINDS[kind])
    groups = training.backbone_groups(backbone, SETTINGS, layer_decay=0.5)
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in backbone.parameters() if p.requires_grad}


def test_each_block_learns_slower_than_the_next() -> None:
    backbone = tiny_vit(num_registers=1)
    groups = training.backbone_groups(backbone, SETTINGS, layer_decay=0.5)
    rate = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    of = {name: rate[id(p)] for name, p in backbone.named_parameters()}
    assert of["norm.weight"] == (0.5, 0)
    for i, lr in enumerate([0.0625, 0.125, 0.25]):
        assert of[f"blocks.{i}.attn.qkv.weight"] == (lr, 0.1)
        assert of[f"blocks.{i}.attn.qkv.bias"] == of[f"blocks.{i}.norm1.weight"] == (lr, 0)
    assert of["patch_embed.proj.weight"] == (0.03125, 0.1)
    assert of["cls_token"] == of["reg_token"] == of["pos_embed.table"] == (0.03125, 0)
    frozen = tiny_vit()
    frozen.blocks[0].requires_grad_(False)
    held = {id(p) for group in training.backbone_groups(frozen, SETTINGS, 0.5) for p in group["params"]}
    assert not held & {id(p) for p in frozen.blocks[0].parameters()}


class Interrupted(Exception):
    pass


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    settings = training.Settings(steps=7, lr=0.01, save_every=2, seed=3)

    def train(out: Path, stop: int | None = None) -> dict[str, torch.Tensor]:
        backbone = tiny_vit(drop_path=0.5)
        head = randomise(create_head("mlp", backbone.spec, num_classes=3))
        model = attach(backbone, {"p": head}).train()

        def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
            if step == stop:
                raise Interrupted
            return torch.randn(4, 3, 32, 32), torch.randint(3, (4,))

        def loss(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return F.cross_entropy(model(batch[0])["p"], batch[1])

        groups = [*training.backbone_groups(backbone, settings, 0.8), *training.head_groups(head, settings)]
        training.fit(model, groups, batch, loss, settings, out)
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    whole = train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", stop=5)  # after the checkpoint of step 4
    cut = train(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    fresh = randomise(create_head("mlp", tiny_vit().spec, num_classes=3)).linear.weight
    assert not torch.equal(whole["heads.p.linear.weight"], fresh)
    settings = replace(settings, lr=0.02)
    with pytest.raises(SystemExit, match="give another --out"):
        train(tmp_path / "cut")


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [training.schedule(i / 100, warmup=0.1) for i in range(101)]
    assert rates[:11] == pytest.approx([i / 10 for i in range(11)])
    assert rates[55] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="the loss of step 0 is nan; try a lower learning rate"):
        training.fit(
            layer,
            training.head_groups(layer, SETTINGS),
            lambda _: torch.full((1, 2), torch.nan),
            lambda x: layer(x).sum(),
            SETTINGS,
            tmp_path,
        )


def test_copies_are_tested_or_trained_on_together(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copied"
    for path in sorted(photos.rglob("*.*")):
        if path.is_file():
            for name in (path.name, f"copy of {path.name}"):
                (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
                (folder / path.parent.name / name).write_bytes(path.read_bytes())
    (folder / "unknown.png").write_bytes(path.read_bytes())
    data = finetune.read_photos(folder, slice(None))
    assert data.labels.min() == 0
    groups = finetune.copies(data)
    assert len(set(groups)) == len(groups) // 2
    test = finetune.draw(data.labels, 0.25, seed=0, groups=groups)
    assert not set(groups[test]) & set(groups[~test])
    assert 0.15 < test.mean() < 0.4
