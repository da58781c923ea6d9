"""A saved head that was edited or damaged is refused by name."""

import json
import os
from pathlib import Path

import pytest

from heads import create_head, load_head, save_head
from tests.helpers import tiny_vit


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
