"""The index of shards names files of its own folder, and agrees with them."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.checkpoints.refusals import INDEX, assert_refused, edit, save
from vitbackbone import load_backbone


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\b", "a\0b"])
def test_an_index_names_files_of_its_own_folder_alone(directory: Path, name: str) -> None:
    (directory / "model.safetensors").rename(directory.parent / "x.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    assert_refused(lambda: load_backbone(directory), str(directory / INDEX), "weight_map")


def test_a_shard_is_no_link_out_of_the_folder(tmp_path: Path) -> None:
    directory = save(tmp_path / "a", shards=True)
    shard = sorted(directory.glob("model-*.safetensors"))[0]
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    assert_refused(lambda: load_backbone(directory), str(directory / INDEX), shard.name, "link")


def test_a_folder_of_links_into_one_other_is_read(tmp_path: Path) -> None:
    """As in the Hub's cache."""
    save(tmp_path / "blobs", shards=True)
    (tmp_path / "snapshot").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(Path("..", "blobs", file.name))
    assert load_backbone(tmp_path / "snapshot").config.dim == 48


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}, {"a": None}, {"a": ["b"]}, "model.safetensors"])
def test_an_index_of_another_shape_is_named(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors").unlink()
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert_refused(lambda: load_backbone(directory), str(directory / INDEX), "weight_map")


def test_an_index_and_its_shards_agree(tmp_path: Path) -> None:
    directory = save(tmp_path, shards=True)
    index = json.loads((directory / INDEX).read_text())
    key, shard = next(iter(index["weight_map"].items()))
    other = next(name for name in index["weight_map"].values() if name != shard)
    edit(directory / INDEX, weight_map={**index["weight_map"], "lost": shard})
    assert_refused(lambda: load_backbone(directory), str(directory / shard), "lost")
    edit(directory / INDEX, weight_map=index["weight_map"])
    save_file({**load_file(directory / other), key: load_file(directory / shard)[key]}, directory / other)
    assert_refused(lambda: load_backbone(directory), key)
    (directory / other).unlink()
    assert_refused(lambda: load_backbone(directory), other, INDEX)
