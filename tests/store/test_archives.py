"""Archives: every member is a row or a named failure, and the listing equals GNU tar's and unzip's."""

import bz2
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import tiny_vit
from tests.store.archives import contents, image, tar, zipped
from vitbackbone.store import extract
from vitbackbone.store.sources.source import list_inputs


@pytest.mark.parametrize("make", [tar, zipped])
@pytest.mark.parametrize(
    ("names", "classes", "labels"),
    [
        (["cat/1.png", "dog/1.png", "loose.png"], ("cat", "dog"), (0, 1, -1)),
        (["./cat/1.png", "./dog/1.png"], ("cat", "dog"), (0, 1)),
        (["photos/cat/1.png", "photos/dog/1.png", "photos/loose.png"], ("cat", "dog"), (0, 1, -1)),
        (["home/me/photos/cat/1.png", "home/me/photos/dog/2.png"], ("cat", "dog"), (0, 1)),
        (["photos/cat/1.png", "photos/cat/2.png"], ("cat",), (0, 0)),
        (["cat/1.png", "cat/2.png"], ("cat",), (0, 0)),
        (["1.png", "2.png"], (), (-1, -1)),
        (["photos/cat/1.png", "../2.png", "photos/dog/3.png"], ("cat", "dog"), (0, -1, 1)),
    ],
)
def test_folders_of_an_archive_are_classes(
    tmp_path: Path, make: Callable[..., Path], names: list[str], classes: tuple[str, ...], labels: tuple[int, ...]
) -> None:
    file = make(tmp_path / f"a.{'tar' if make is tar else 'zip'}", [(name, image(i)) for i, name in enumerate(names)])
    inputs = list_inputs(file)
    assert sorted(inputs.class_names) == sorted(classes)
    named = [inputs.class_names[label] if label >= 0 else None for label in inputs.labels]
    assert sorted(map(str, named)) == sorted(str(classes[label] if label >= 0 else None) for label in labels)


@pytest.mark.parametrize("make", [tar, zipped])
def test_hidden_members_and_resource_forks_are_neither_rows_nor_classes(
    tmp_path: Path, make: Callable[..., Path]
) -> None:
    hidden = ["__MACOSX/cat/._1.png", "__MACOSX/2.png", ".thumbs/1.png", "cat/.2.png", "cat/.git/3.png", "._cat"]
    file = make(tmp_path / f"a.{'tar' if make is tar else 'zip'}", [(n, image(1)) for n in ["cat/1.png", *hidden]])
    inputs = list_inputs(file)
    assert [path.split("/", 1)[1] for path in inputs.paths] == ["cat/1.png"]
    assert inputs.class_names == ("cat",)


@pytest.mark.parametrize("make", [tar, zipped])
def test_members_are_images_by_their_content_too_and_others_are_counted(
    tmp_path: Path, make: Callable[..., Path]
) -> None:
    members = [("photo", image(1)), ("a.dat", image(2)), ("b.jfif", image(3)), ("notes.txt", b"?"), ("x", b"text")]
    file = make(tmp_path / f"a.{'tar' if make is tar else 'zip'}", members)
    assert list(contents(file)) == ["photo", "a.dat", "b.jfif"]
    assert any(note.startswith("2 files ignored") and "1 .txt" in note for note in list_inputs(file).notes)


@pytest.mark.parametrize("make", [tar, zipped])
@pytest.mark.parametrize("name", ["../up.png", "/abs.png", "a/../../b.png", "C:\\x.png", "..\\up.png"])
def test_a_name_that_leads_out_is_a_row_and_no_path(tmp_path: Path, make: Callable[..., Path], name: str) -> None:
    file = make(tmp_path / f"a.{'tar' if make is tar else 'zip'}", [(name, image(1)), ("in.png", image(2))])
    found = contents(file)
    assert len(found) == 2
    assert found["in.png"] == image(2)
    assert str(next(iter(found.values()))).startswith("outside: ") or name[:3] in ("..\\", "C:\\")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("texts", "classes", "labels"),
    [
        (["3", "10"], tuple(map(str, range(11))), (3, 10)),
        (["3", "cat"], ("3", "cat"), (0, 1)),
        ([" dog \n", "cat"], ("cat", "dog"), (1, 0)),
        (["", "1"], ("0", "1"), (-1, 1)),
    ],
)
def test_cls_files_of_a_tar_are_numbers_or_names(
    tmp_path: Path, texts: list[str], classes: tuple[str, ...], labels: tuple[int, ...]
) -> None:
    members = [
        member
        for i, text in enumerate(texts)
        for member in ((f"{i}.jpg", image(i, "JPEG")), (f"{i}.cls", text.encode()), (f"{i}.json", b"{}"))
    ]
    inputs = list_inputs(tar(tmp_path / "a.tar", members))
    assert inputs.class_names == classes
    assert inputs.labels == labels


def test_a_run_over_damaged_archives_has_a_row_for_each_and_ends(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [("cat/1.png", image(1)), ("dog/2.png", image(2))])
    (tmp_path / "b.tar").write_bytes(b"not an archive" * 100)
    (tmp_path / "c.tar").write_bytes(lzma.compress(b"x" * 2000))
    (tmp_path / "d.tar").write_bytes(bz2.compress(b"x" * 2000))
    store = extract(tiny_vit(), tmp_path / "*.tar", tmp_path / "out", progress=False)
    assert len(store) == 2
    assert [path.split("/")[-2] for path, _ in store.failed] == ["b.tar", "c.tar", "d.tar"]
    assert ["compressed" in error for _, error in store.failed] == [False, True, True]
