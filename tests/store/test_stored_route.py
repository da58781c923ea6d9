"""All runs of a store compute by one route, made with the same images, whatever becomes of the source."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import tiny_vit
from tests.store.small import backbone, objects, save
from vitbackbone.contract import Runtime
from vitbackbone.store import extract, prune, verify
from vitbackbone.store import run as run_module
from vitbackbone.store.workers import route

OPTIONS = {"shard_size": 3, "progress": False}


@pytest.fixture
def made_with(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """A machine where 8 bits are the fastest. Gives the images with which each route was made."""
    made: list[list[Tensor]] = []
    monkeypatch.setattr(route, "optimize", lambda *_: SimpleNamespace(runtime=Runtime("int8")))
    monkeypatch.setattr(route, "rebuild", lambda plain, _, sample: (made.append(sample), plain)[1])
    return made


def vanished(photos: Path) -> None:
    (photos / "cat" / "0.jpg").unlink()


def changed(photos: Path) -> None:
    save(photos / "cat" / "0.jpg", 77)


@pytest.mark.promise(32)
@pytest.mark.parametrize("change", [vanished, changed])
def test_a_calibrated_store_grows_after_its_first_image_has_vanished_or_changed(
    change: Callable[[Path], None], photos: Path, tmp_path: Path, made_with: list[list[Tensor]]
) -> None:
    out = tmp_path / "f"
    extract(backbone(), photos, out, precision="int8", **OPTIONS)
    change(photos)
    save(photos / "dog" / "9.png", 9)
    assert len(extract(backbone(), photos, out, precision="int8", **OPTIONS)) == 8
    assert len(made_with) == 2
    torch.testing.assert_close(made_with[0], made_with[1], rtol=0, atol=0)


@pytest.mark.promise(29, 36)
def test_the_images_of_a_route_are_verified_kept_by_prune_and_written_again(
    photos: Path, tmp_path: Path, made_with: list[list[Tensor]]
) -> None:
    out = tmp_path / "f"
    store = extract(backbone(), photos, out, precision="int8", **OPTIONS)
    save(photos / "dog" / "9.png", 9)
    extract(backbone(), photos, out, precision="int8", **OPTIONS)
    prune(out)
    assert not verify(out).problems
    name = store.manifest["calibration"]
    file = out / "objects" / name[:2] / name
    file.unlink()
    assert [(key, text.partition(";")[0]) for key, text in verify(out).problems] == [
        (f"objects/{name[:2]}/{name}", "is missing")
    ]
    extract(backbone(), photos, out, precision="int8", **OPTIONS)
    assert not verify(out).problems
    file.write_bytes(b"")
    vanished(photos)
    with pytest.raises(ValueError, match="the first images of the source are others now. Put those back"):
        extract(backbone(), photos, out, precision="int8", **OPTIONS)


@pytest.mark.promise(5)
def test_a_run_takes_the_route_of_another_that_published_first(
    photos: Path, tmp_path: Path, made_with: list[list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = route.choose

    def late(*given: object) -> Runtime:
        monkeypatch.setattr(run_module, "choose", choose)
        extract(backbone(), photos, tmp_path / "f", precision="int8", **OPTIONS)
        return Runtime("int8", "openvino")

    monkeypatch.setattr(run_module, "choose", late)
    store = extract(backbone(), photos, tmp_path / "f", precision="int8", slice=(0, 2), **OPTIONS)
    assert store.manifest["runtime"]["engine"] == "native"


@pytest.mark.promise(2)
def test_a_resumed_run_writes_the_bytes_of_the_first_at_any_resolution(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(run_module, "AUTO_FROM", 2)
    out, options = tmp_path / "f", {**OPTIONS, "engine": "openvino", "resolution": 96}
    model = tiny_vit(image_size=(64, 64), patch_size=16, dim=192, num_heads=3, mlp_dim=768, depth=4)
    store = extract(model, photos, out, **options)
    before = objects(out)
    for name in store.table.names:
        (out / "objects" / name[:2] / name).unlink()
    again = extract(model, photos, out, **options)
    np.testing.assert_array_equal(again.cls, store.cls)
    assert objects(out) == before
