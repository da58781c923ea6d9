"""Every file that is written is there whole or not at all, wherever the writer is killed, and no planted link is
followed."""

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heads import create_head, load_head, save_head
from tests.helpers import tiny_vit
from vitbackbone import publish, publish_text, publish_together, read_together
from vitbackbone.files import atomic

ROOT = Path(__file__).parents[2]

CALLS = {
    os: ("mkdir", "rename", "replace", "rmdir", "fsync", "chmod", "unlink"),
    Path: ("write_bytes", "write_text"),
}


def killed(work: Callable[[], None], last: int) -> bool:
    """Whether `work`, in a process of its own, was killed before the last of that many calls that change the disk."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    count = 0

    def killing(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == last:
                os._exit(9)
            return call(*args, **kwargs)

        return wrapped

    try:
        for owner, names in CALLS.items():
            for name in names:
                setattr(owner, name, killing(getattr(owner, name)))
        work()
        os._exit(0)
    finally:
        os._exit(1)


def test_a_kill_in_the_second_save_leaves_the_first_or_the_second(tmp_path: Path) -> None:
    vit = tiny_vit(depth=4)
    first, second = (create_head("linear", vit.spec, num_classes=3) for _ in range(2))
    first.classifier.bias.data.fill_(1)
    second.classifier.bias.data.fill_(2)
    found, last, alive = [], 0, False
    while not alive:
        last += 1
        folder = tmp_path / str(last)
        save_head(first, folder, vit)
        alive = not killed(lambda folder=folder: save_head(second, folder, vit), last)
        (value,) = set(load_head(folder, vit).classifier.bias.tolist())
        found.append(value)
        save_head(first, folder, vit)  # whatever the killed one left
        assert set(load_head(folder, vit).classifier.bias.tolist()) == {1}
    assert found == sorted(found), "once the second one counts, it does"
    assert set(found) == {1, 2}
    assert last > 8


def test_an_exception_leaves_the_first(tmp_path: Path) -> None:
    publish_text(tmp_path / "a", "first")
    with publish_together(tmp_path / "both", "both") as folder:
        (folder / "x").write_text("1")

    def interrupted(writer: Any, name: str) -> None:
        with writer as temporary:
            (temporary / name if name else temporary).write_text("second")
            raise KeyboardInterrupt

    for writer, name in ((publish(tmp_path / "a"), ""), (publish_together(tmp_path / "both", "both"), "x")):
        with pytest.raises(KeyboardInterrupt):
            interrupted(writer, name)
    assert (tmp_path / "a").read_text() == "first"
    assert read_together(tmp_path / "both", "both", ["x"]) == [b"1"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "both", "x"]


def test_links_are_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a", "x", ".both.ready"):
        (folder / name).symlink_to(victim)
    publish_text(folder / "a", "new")
    with publish_together(folder, "both") as temporary:
        (temporary / "x").write_text("new")
    assert victim.read_text() == "kept"
    for name in ("a", "x"):
        assert (folder / name).read_text() == "new"
        assert not (folder / name).is_symlink()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_text("planted")
    (folder / ".both.ready").symlink_to(outside)
    assert read_together(folder, "both", ["x"]) == [b"new"]


def test_the_temporary_folder_is_private_and_its_name_new(tmp_path: Path) -> None:
    seen = set()
    for _ in range(3):
        with publish(tmp_path / "a") as temporary:
            temporary.write_text("x")
            assert stat.S_IMODE(temporary.parent.stat().st_mode) == 0o700
            seen.add(temporary.parent.name)
    assert len(seen) == 3


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_are_as_readable_as_others(mask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "UMASK", mask)
    publish_text(tmp_path / "a", "x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(FileNotFoundError, match="there is no y and no z"):
        read_together(tmp_path, "all", ["x", "y", "z"])


def test_no_writer_goes_past_them() -> None:
    """Every writer writes into a folder that `publish` or `publish_together` gave it."""
    writing = re.compile(r"([\w.()/ \"{}]+?)\.(write_text|write_bytes)\(|(save_file|torch\.save)\((.*)")
    allowed = re.compile(r"temporary|opened|_file\b")
    lines = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for package in ("heads", "vitbackbone", "examples")
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in path.read_text().splitlines()
        if writing.search(line) and not allowed.search(line)
    ]
    assert not lines


@pytest.mark.promise(1)
@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_an_exception_leaves_neither_target_nor_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def write() -> None:
        with publish(tmp_path / "target") as temporary:
            temporary.write_bytes(b"half")
            temporary.with_name("of the writer").touch()
            assert temporary.parent.parent == tmp_path  # of one file system, so that a rename is one step
            if moment == "writing":
                interrupt()

    if moment == "renaming":
        monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_publication_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    with pytest.raises(FileNotFoundError), publish(tmp_path / "target") as temporary:
        temporary.with_name("nowhere").read_bytes()
    assert [(path.name, path.read_text()) for path in tmp_path.rglob("*")] == [("target", "old")]
