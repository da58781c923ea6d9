"""A saved head belongs to its backbone, and is refused by name if it was edited or damaged."""

import json
import os
from pathlib import Path

import pytest
import torch

from heads import LinearSegmenter, create_head, load_head, save_head
from tests.helpers import randomise, tiny_vit
from vitbackbone import ViT, fingerprint


@pytest.fixture
def saved(tmp_path: Path) -> tuple[ViT, Path]:
    model = tiny_vit(depth=4)
    save_head(randomise(create_head("linear", model.spec, num_classes=3)), tmp_path, model)
    return model, tmp_path


def test_a_saved_head_is_bound_to_its_backbone(saved: tuple[ViT, Path]) -> None:
    model, folder = saved
    assert load_head(folder, tiny_vit(depth=4)).num_classes == 3
    other = tiny_vit(depth=4)
    with torch.no_grad():
        other.blocks[0].mlp.fc1.weight[0, 0] += 1
    again = fingerprint(other)[:12]
    wanted = rf"was fitted to tiny \({fingerprint(model)[:12]}\), and this is tiny \({again}\); load that backbone"
    for wrong in (other, tiny_vit(depth=4, qkv_bias="none")):
        with pytest.raises(ValueError, match=wanted if wrong is other else "was fitted to"):
            load_head(folder, wrong)


def test_the_fingerprint_is_of_what_decides_the_features() -> None:
    base = fingerprint(tiny_vit())
    assert fingerprint(ViT(tiny_vit().config, name="another name").eval()) != base  # other weights
    renamed = tiny_vit()
    renamed.name = "another name"
    assert fingerprint(renamed) == base
    assert fingerprint(tiny_vit(seed=1)) != base
    assert fingerprint(tiny_vit(norm_eps=1e-5)) != base


def test_damaged_files_are_refused(saved: tuple[ViT, Path]) -> None:
    model, folder = saved
    record = json.loads((folder / "head.json").read_text())
    data = (folder / "head.safetensors").read_bytes()

    (folder / "head.safetensors").write_bytes(data[:-1] + b"\0")
    with pytest.raises(ValueError, match="head.safetensors is not the file that head.json was written with"):
        load_head(folder, model)
    (folder / "head.safetensors").write_bytes(data[:100])
    with pytest.raises(ValueError, match="holds no head that save_head wrote"):
        load_head(folder, model)
    (folder / "head.safetensors").write_bytes(data)
    for wrong in ({"version": 2}, {"config": None, "backbone": None}, {"head": "none of ours"}, {"config": {"k": 1}}):
        (folder / "head.json").write_text(json.dumps({**record, **wrong}))
        with pytest.raises(ValueError, match=r"version 2|holds no head|unknown head|its options are"):
            load_head(folder, model)
    (folder / "head.json").write_text(json.dumps({**record, "config": {"num_classes": 4}}))
    with pytest.raises(ValueError, match="do not fit head 'linear'"):
        load_head(folder, model)
    (folder / "head.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no head.json; want a folder written by save_head"):
        load_head(folder, model)


def test_what_cannot_be_made_again_is_not_saved(tmp_path: Path) -> None:
    model = tiny_vit()
    with pytest.raises(ValueError, match="this LinearSegmenter has no name; make it with create_head"):
        save_head(LinearSegmenter(model.spec, num_classes=3), tmp_path, model)
    head = create_head("linear", model.spec, num_classes=3)
    head.config = {"num_classes": {1, 2}}
    with pytest.raises(ValueError, match="the options of 'linear' do not fit into JSON"):
        save_head(head, tmp_path, model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["head", "config", "backbone"])
def test_a_record_that_was_edited_is_refused(key: str, tmp_path: Path) -> None:
    vit = tiny_vit(depth=4)
    save_head(create_head("linear", vit.spec, num_classes=3), tmp_path, vit)
    record = json.loads((tmp_path / "head.json").read_text())
    edits = {
        "head": "linear ",
        "config": {"num_classes": 3, "dropout": 0.5},
        "backbone": {**record["backbone"], "name": 1},
    }
    (tmp_path / "head.json").write_text(json.dumps({**record, key: edits[key]}))
    with pytest.raises(ValueError, match="head.json was edited|unknown head|backbone: name=1; want a string"):
        load_head(tmp_path, vit)


MALFORMED = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"3",
    "not UTF-8": b"\xff\xfe",
    "no keys": b"{}",
    "wrong kinds": b'{"version": true, "sha256": 3}',
    "a key twice": b'{"version": 1, "version": 1}',
    "deep": b"[" * 200_000,
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_record_is_named(text: bytes, tmp_path: Path) -> None:
    vit = tiny_vit(depth=4)
    save_head(create_head("linear", vit.spec, num_classes=3), tmp_path, vit)
    (tmp_path / "head.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"holds no head that save_head wrote: head.json"):
        load_head(tmp_path, vit)
    os.truncate(tmp_path / "head.safetensors", 3)
    with pytest.raises(ValueError, match="holds no head that save_head wrote"):
        load_head(tmp_path, vit)
