"""The store as its reader sees it, and arguments that are refused."""

import copy
import importlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.helpers import tiny_vit
from tests.store.small import backbone, contents, features_of, save
from vitbackbone.contract.fingerprint import weights_sha256
from vitbackbone.store import FeatureStore, extract, verify
from vitbackbone.store.layout import INDEX
from vitbackbone.store.workers import route


def test_the_store_opens_without_reading_the_shards(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f"
    extract(backbone(), photos, out, tokens=["cls", "patches"], shard_size=1)
    opened: list[str] = []
    module = importlib.import_module("vitbackbone.store.tensors")
    monkeypatch.setattr(module, "safe_open", lambda path, **o: (opened.append(path.name), safe_open(path, **o))[1])
    third, fifth = features_of(out, 3), features_of(out, 5)
    fifth.write_bytes(b"damaged")
    store = FeatureStore(out)
    assert len(store) == len(store.paths) == len(store.labels) == 7
    assert opened == []
    store.patches(3)
    store.patches(3)
    assert opened == [third.name]
    with pytest.raises(ValueError, match=rf"{fifth.name} is damaged .* run the extraction on its source again"):
        store.patches(5)


def test_the_features_of_one_shard_are_mapped_not_copied(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f"
    store = extract(backbone(), photos, out, tokens=["cls", "patches"])
    address = store.cls.__array_interface__["data"][0]
    name = store.table.names[0]
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if name in line]
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
    assert any(start <= address < stop for start, stop in spans)
    store.cls[:] = 0  # the map is private: what is on disk stays
    assert FeatureStore(out).cls.any()


def test_a_store_pickles(photos: Path, tmp_path: Path) -> None:
    store = extract(backbone(), photos, tmp_path / "f", tokens=["patches"], layers=[0, 1]).layer(0)
    store.patches(0)
    copied = pickle.loads(pickle.dumps(store))  # noqa: S301  # our own
    np.testing.assert_array_equal(copied.patches(2), store.patches(2))


def test_a_store_may_be_sent_and_shows_other_layers_from_another_working_directory(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    extract(backbone(), photos, "f", layers=[0, 1], progress=False)
    store = FeatureStore("f")
    sent = pickle.dumps(store)
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(pickle.loads(sent).cls, store.cls)  # noqa: S301  # our own
    np.testing.assert_array_equal(store.layer(0).cls, FeatureStore(tmp_path / "f", 0).cls)


def test_images_are_chosen_as_numpy_chooses_rows(photos: Path, tmp_path: Path) -> None:
    store = extract(backbone(), photos, tmp_path / "f", tokens=["cls", "patches"], shard_size=3, progress=False)
    mask = np.arange(7) % 3 == 1
    for index in (mask, mask.tolist(), [5, 1], (1, 5), range(2, 4), [-1], []):
        rows = np.asarray(index) if len(index) else []
        np.testing.assert_array_equal(store.read("cls", index), store.cls[rows])
    for wrong in ([7], mask[:3]):
        with pytest.raises(IndexError):
            store.read("cls", wrong)
    for one in (2, np.int64(2), np.array(2), torch.tensor(2), -5):
        np.testing.assert_array_equal(store.tokens[one], store.tokens[2])
    assert [len(tokens) for tokens in store.tokens[mask]] == store.grids.prod(axis=1)[mask].tolist()


@pytest.mark.parametrize("content", [None, b"no image"])
def test_a_store_without_any_features_has_arrays_without_rows(content: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\n0.png\n1.png\n")
    for i in range(2):
        if content is not None:
            (tmp_path / f"{i}.png").write_bytes(content)
    kinds = ["cls", "registers", "patches"]
    store = extract(tiny_vit(num_registers=2), tmp_path / "list.csv", tmp_path / "f", tokens=kinds, progress=False)
    assert (len(store), store.cls.shape, store.registers.shape, store.grids.shape) == (0, (0, 16), (0, 2, 16), (0, 2))
    assert [list(store.tokens), list(store.rows.blocks(8)), store.paths, store.labels.tolist()] == [[], [], [], []]
    assert [path for path, _ in store.failed] == ["0.png", "1.png"]


def test_a_store_says_what_it_has_not(photos: Path, tmp_path: Path) -> None:
    store = extract(backbone(num_registers=1), photos, tmp_path / "f")
    with pytest.raises(ValueError, match=r"has no patches, only cls; .* --tokens cls,patches"):
        store.patches(0)
    with pytest.raises(ValueError, match="has no registers"):
        _ = store.registers
    with pytest.raises(ValueError, match=r"has no layer 0; it stores \[1\] of 2"):
        store.layer(0)
    for directory in (photos, tmp_path / "nowhere", photos / "cat/0.jpg"):
        with pytest.raises(ValueError, match=r"is not a feature store: it has no latest\.json and no snapshots/"):
            FeatureStore(directory)


@pytest.mark.parametrize("use", [FeatureStore, verify, lambda out: extract(backbone(), out, out)])
def test_a_store_of_the_first_edition_is_refused(photos: Path, use: Callable[[Path], object]) -> None:
    (photos / "manifest.json").write_text(json.dumps({"schema": 2, "model": {}}))
    before = contents(photos)
    with pytest.raises(ValueError, match="is a store of the first edition, which this version does not read"):
        use(photos)
    assert contents(photos) == before


def test_a_folder_name_does_not_become_a_column(photos: Path, tmp_path: Path) -> None:
    store = extract(backbone(), photos, tmp_path / "run=1")
    assert store.index.schema.names == INDEX.names  # pyarrow reads run=1 as a partition unless told otherwise


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": ["cls", "words"]}, "want at least one of cls, registers, patches"),
        ({"tokens": []}, "want at least one of cls, registers, patches"),
        ({"tokens": ["registers"]}, "vit has no register tokens"),
        ({"layers": [2]}, "want block indices from -2 to 1"),
        ({"layers": [-1, 1]}, "names a layer twice"),
        ({"dtype": "int8"}, "dtype='int8'; want one of float32, float16, bfloat16"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"shard_size": 0}, "shard_size must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"resolution": 0}, "resolution must be at least 1 pixel"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    photos: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        extract(backbone(), photos, tmp_path / "f", **options)
    assert not (tmp_path / "f").exists()


def test_a_backbone_without_cls_gives_patches(photos: Path, tmp_path: Path) -> None:
    model = backbone(cls=False, pool="mean")
    with pytest.raises(ValueError, match="vit has no CLS token"):
        extract(model, photos, tmp_path / "f")
    store = extract(model, photos, tmp_path / "f", tokens=["patches"])
    assert store.patches(0).shape == (16, 4, 4)


def test_the_fingerprint_of_the_weights_sees_every_change() -> None:
    model = backbone()
    base = weights_sha256(model)
    assert weights_sha256(copy.deepcopy(model)) == base
    assert weights_sha256(copy.deepcopy(model).bfloat16()) != base
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.blocks[1].mlp.fc2.bias[-1] = torch.nextafter(changed.blocks[1].mlp.fc2.bias[-1], torch.tensor(1.0))
    assert weights_sha256(changed) != base
    same_bytes = [  # under another name, in another shape, of another dtype
        torch.nn.ParameterDict({name: torch.nn.Parameter(torch.zeros(shape, dtype=dtype))})
        for name, shape, dtype in (
            ("a", (2, 3), torch.float16),
            ("b", (2, 3), torch.float16),
            ("a", (3, 2), torch.float16),
            ("a", (2, 3), torch.bfloat16),
        )
    ]
    assert len({weights_sha256(module) for module in same_bytes}) == 4


def test_a_store_can_be_read_by_whoever_may_read_other_files(photos: Path, tmp_path: Path) -> None:
    extract(backbone(), photos, tmp_path / "f", progress=False)
    reference = tmp_path / "reference"
    reference.write_bytes(b"")
    modes = {path.stat().st_mode for path in (tmp_path / "f").rglob("*") if path.is_file()}
    assert modes == {reference.stat().st_mode}


@pytest.mark.parametrize(("tokens", "images"), [(["cls"], 1000), (["cls", "patches"], 255)])
def test_a_shard_stays_small_enough_to_hold_in_memory(
    photos: Path, tmp_path: Path, tokens: list[str], images: int
) -> None:
    """256 MiB: a photo of 512 x 512 pixels has 4096 + 1 tokens of 64 float32 values."""
    store = extract(backbone(dim=64), photos, tmp_path / "f", tokens=tokens, resolution=512, progress=False)
    assert store.manifest["shard_size"] == images


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(photos: Path, tmp_path: Path) -> None:
    for device in ("warp", "meta"):
        with pytest.raises(ValueError, match=f"device='{device}'"):
            extract(backbone(), photos, tmp_path / "f", device=device, progress=False)
    with pytest.raises(ValueError, match="is on the meta device, which holds no values; load the weights first"):
        extract(backbone().to("meta"), photos, tmp_path / "f", progress=False)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("readable", [True, False])
def test_routes_are_compared_only_for_images_that_can_be_read(
    readable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    optimise = route.optimize
    monkeypatch.setattr(route, "optimize", lambda *given: (asked.append(given), optimise(*given))[1])
    for module in ("workers.route", "run"):
        monkeypatch.setattr(f"vitbackbone.store.{module}.AUTO_FROM", 3)
    for i in range(3):
        save(tmp_path / "photos" / f"{i}.png", i)
        if not readable:
            (tmp_path / "photos" / f"{i}.png").write_bytes(b"no image")
    extract(tiny_vit(), tmp_path / "photos", tmp_path / "f", progress=False)
    assert len(asked) == readable
