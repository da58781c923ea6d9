"""A second run finishes what the first one did not, and a run with other settings or inputs is refused."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.store.small import TINY, Interrupted, backbone, contents, objects, picture, save, write_list
from vitbackbone.files import LocalStorage
from vitbackbone.store import FeatureStore, extract, history


def test_a_second_run_finishes_what_the_first_did_not(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    stopped = Interrupted(TINY).eval()
    with pytest.raises(KeyboardInterrupt):
        extract(stopped, photos, tmp_path / "f", shard_size=2)
    assert not [name for name in contents(tmp_path / "f") if "unfinished" in name or "leases" in name]
    with pytest.raises(ValueError, match="is incomplete: 2 of 4 shards are missing; run the same extraction again"):
        FeatureStore(tmp_path / "f")

    model = backbone()
    extract(model, photos, tmp_path / "f", shard_size=2)
    assert [count for count, _ in model.seen] == [2, 1]
    again = backbone()
    extract(again, photos, tmp_path / "f", shard_size=2)
    assert not hasattr(again, "seen")
    extract(backbone(), photos, tmp_path / "whole", shard_size=2)
    assert objects(tmp_path / "f") == objects(tmp_path / "whole")


@pytest.mark.promise(2)
def test_a_run_that_was_killed_after_its_last_snapshot_leaves_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, original = tmp_path / "f", LocalStorage.delete

    def killed(self: LocalStorage, key: str) -> None:
        if key.startswith("done/"):
            raise KeyboardInterrupt
        original(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            extract(backbone(), photos, out, shard_size=3)
    assert len(list(out.glob("done/*"))) == 3
    assert len(FeatureStore(out)) == 7
    again = backbone()
    extract(again, photos, out, shard_size=3)
    assert not hasattr(again, "seen")
    assert [*out.glob("done/*"), *out.glob("leases/*")] == []
    assert [one.why for one in history(out)] == ["results", "plan"]


@pytest.mark.promise(6)
def test_another_run_is_refused_with_each_difference_named(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f"
    extract(backbone(), photos, out)
    whole = contents(out)
    other = copy.deepcopy(backbone())
    with torch.no_grad():
        other.norm.bias[3] += 1e-6
    renamed = backbone()
    renamed.spec = replace(renamed.spec, name="other")
    squash = backbone()
    squash.preprocess = replace(squash.preprocess, crop_mode="squash")
    cases = [
        (other, {}, [r"model\.weights_sha256: the store has '[0-9a-f]{64}', asked is '[0-9a-f]{64}'"]),
        (renamed, {}, [r"model\.name: the store has 'vit', asked is 'other'"]),
        (squash, {}, [r"preprocessing\.crop_mode: the store has 'center', asked is 'squash'"]),
        (backbone(), {"dtype": "float16"}, ["dtype: the store has 'float32', asked is 'float16'"]),
        (backbone(), {"resolution": 64}, [r"preprocessing\.resolution: the store has None, asked is 64"]),
        (backbone(), {"keep_aspect": True}, [r"keep_aspect: the store has False, asked is True"]),
        (backbone(), {"shard_size": 7, "layers": [0]}, ["layers: the store has", "shard_size: .* 1000, asked is 7"]),
        (backbone(), {"tokens": ["patches"]}, [r"tokens: the store has \['cls'\], asked is \['patches'\]"]),
    ]
    for model, options, messages in cases:
        for message in messages:
            with pytest.raises(ValueError, match=message):
                extract(model, photos, out, **options)
    assert contents(out) == whole


@pytest.mark.promise(6)
def test_other_inputs_are_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f"
    extract(backbone(), photos, out)
    whole = contents(out)
    save(tmp_path / "others" / "a.png", 9)
    with pytest.raises(
        ValueError, match=r"built from different inputs: none of its 7 .* such as 'cat/0\.jpg', is among the 1 "
    ):
        extract(backbone(), tmp_path / "others", out)
    relabelled = write_list(photos / "list.csv", [("cat/0.jpg", "dog"), ("cat/1.png", "cat")])
    with pytest.raises(
        ValueError, match=r"label changed since the store was made, for example 'cat/0\.jpg': 'cat' -> 'dog'"
    ):
        extract(backbone(), relabelled, out)
    assert contents(out) == whole


def test_the_order_of_tokens_and_the_batch_size_are_no_difference(photos: Path, tmp_path: Path) -> None:
    extract(backbone(), photos, tmp_path / "f", tokens=["cls", "patches"])
    model = backbone()
    extract(model, photos, tmp_path / "f", tokens=["patches", "cls"], batch_size=2)
    assert not hasattr(model, "seen")


def test_batches_of_a_shard_begin_small_so_that_the_forward_need_not_wait(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(50):
        picture(i).save(tmp_path / "photos" / f"{i:02}.png")
    model = backbone()
    extract(model, tmp_path / "photos", tmp_path / "f", batch_size=16, shard_size=30)
    assert [images for images, _ in model.seen] == [4, 8, 16, 2, 4, 8, 8]
