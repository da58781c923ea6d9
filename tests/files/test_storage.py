"""The promises of every storage. Each place where a store may live passes the same tests: add it to `PLACES`."""

import errno
import fcntl
import hashlib
import io
import os
import pickle
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from vitbackbone.files import Storage, open_storage, read_chunks

PLACES: dict[str, Callable[[Path], str]] = {"disk": lambda folder: str(folder / "store")}


@pytest.fixture(params=PLACES)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(PLACES[request.param](tmp_path))


def test_an_object_is_read_whole_and_in_ranges(storage: Storage) -> None:
    data = bytes(range(256)) * 40
    storage.put("objects/aa/one", data)
    assert storage.get("objects/aa/one") == data
    assert storage.get_range("objects/aa/one", 250, 20) == data[250:270]
    assert storage.get_range("objects/aa/one", len(data) - 5, 20) == data[-5:]
    assert b"".join(read_chunks(storage, "objects/aa/one", chunk=1000)) == data
    found = storage.head("objects/aa/one")
    assert found is not None
    assert (found.key, found.size) == ("objects/aa/one", len(data))
    assert abs(found.modified - time.time()) < 60
    assert list(storage.list("objects/")) == [found]
    storage.put("objects/aa/one", b"repaired")
    assert storage.get("objects/aa/one") == b"repaired"


def test_a_missing_object_is_named(storage: Storage) -> None:
    assert storage.head("no/such") is None
    assert list(storage.list()) == []
    storage.delete("no/such")
    for read in (lambda: storage.get("no/such"), lambda: storage.get_range("no/such", 0, 4)):
        with pytest.raises(FileNotFoundError, match="such"):
            read()
    assert storage.swap("no/such", b"x", "1") is None


def test_a_finished_file_becomes_an_object(storage: Storage) -> None:
    with storage.scratch() as folder:
        file = folder / "big"
        file.write_bytes(b"7" * 100_000)
        storage.put("objects/big", file)
    assert not folder.exists()
    assert storage.get("objects/big") == b"7" * 100_000
    assert [found.key for found in storage.list()] == ["objects/big"]
    local = storage.local_path("objects/big")
    assert local is None or local.read_bytes() == b"7" * 100_000


def test_one_of_many_creators_wins(storage: Storage) -> None:
    with ThreadPoolExecutor(8) as threads:
        for number in range(5):
            won = list(threads.map(lambda i, key=f"snapshots/{number}": storage.create(key, b"%d" % i), range(8)))
            assert sum(won) == 1
            assert storage.get(f"snapshots/{number}") == b"%d" % won.index(True)
    assert storage.create("snapshots/0", storage.get("snapshots/0"))  # its own content: as after a lost answer
    assert not storage.create("snapshots/0", b"another")


def test_one_of_many_swappers_wins(storage: Storage) -> None:
    storage.create("leases/a", b"-")
    first = storage.head("leases/a")
    assert first is not None
    with ThreadPoolExecutor(8) as threads:
        new = list(threads.map(lambda i: storage.swap("leases/a", b"%d" % i, first.version), range(8)))
    won = [version for version in new if version is not None]
    assert len(won) == 1
    assert storage.get("leases/a") == b"%d" % new.index(won[0])
    now = storage.head("leases/a")
    assert now is not None
    assert now.version == won[0] != first.version
    storage.delete("leases/a")
    assert storage.head("leases/a") is None


def test_keys_are_listed_in_order_and_from_a_key_on(storage: Storage) -> None:
    keys = ["a.b", "a/b", "a/é", "ab/c", "b/1/x", "b/10", "b/2"]
    for key in reversed(keys):
        storage.put(key, b"")
    expected = sorted(keys, key=str.encode)
    assert [found.key for found in storage.list()] == expected
    for prefix in ("a", "a/", "b/1", "b/1/", "c", ""):
        for after in ("", "a.b", "a/b", "b/10", "b/1", "zzz"):
            wanted = [key for key in expected if key.startswith(prefix) and key > after]
            assert [found.key for found in storage.list(prefix, after)] == wanted, (prefix, after)


def test_a_storage_can_be_sent_to_another_process(storage: Storage) -> None:
    storage.put("objects/x", b"1")
    assert pickle.loads(pickle.dumps(storage)).get("objects/x") == b"1"  # noqa: S301  # made here


@pytest.mark.parametrize("key", ["", "/a", "../a", "a/../b", "a//b", "./a", "a\0b"])
def test_a_key_cannot_leave_the_place(storage: Storage, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        storage.put(key, hashlib.sha256(b"").digest())


def test_another_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="ftp://; want a folder, s3://, gs:// or az://"):
        open_storage("ftp://host/store")


def test_the_folder_of_unfinished_files_may_be_removed_by_others_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Path.mkdir(exist_ok=True)` fails if it finds the folder, and another writer removes it before it looks again."""
    storage, original, left = open_storage(tmp_path / "store"), Path.mkdir, [3]

    def mkdir(self: Path, *args: object, **options: object) -> None:
        if self.name == ".unfinished" and left[0]:
            left[0] -= 1
            raise FileExistsError(self)
        original(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", mkdir)
        storage.put("a", b"1")
    assert (left, storage.get("a")) == ([0], b"1")
    (tmp_path / "store" / ".unfinished").write_bytes(b"a file")
    with pytest.raises(FileExistsError):
        storage.put("b", b"1")


def test_a_signal_while_an_unfinished_file_is_removed_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, original, left = open_storage(tmp_path / "store"), shutil.rmtree, [1]

    def rmtree(folder: Path, **options: bool) -> None:
        if left[0]:
            left[0] -= 1
            raise SystemExit(143)
        original(folder, **options)

    monkeypatch.setattr("shutil.rmtree", rmtree)
    with pytest.raises(SystemExit):
        storage.put("a", b"1")
    assert storage.get("a") == b"1"
    assert not list((tmp_path / "store").glob(".unfinished/*"))


CALLS = [(os, name) for name in ("mkdir", "link", "replace", "unlink", "rmdir", "fsync")]


@pytest.mark.parametrize("data", [b"1", Path("part")])
def test_a_kill_before_any_call_leaves_nothing_that_a_sweep_does_not_remove(tmp_path: Path, data: bytes | Path) -> None:
    def put(storage: Storage, dies: int) -> None:
        """Put an object, and end the process before its call of the system with this number."""
        left = [dies]

        def dying(original: Callable[..., object], *args: object, **options: object) -> object:
            left[0] -= 1
            if not left[0]:
                os._exit(9)
            return original(*args, **options)

        for module, name in (*CALLS, (io, "open"), (fcntl, "flock")):
            setattr(module, name, partial(dying, getattr(module, name)))
        with storage.scratch() as folder:
            if isinstance(data, Path):
                (folder / data).write_bytes(b"1")
            storage.put("a", folder / data if isinstance(data, Path) else data)
        os._exit(0)

    ended = number = 0
    while not ended:
        number += 1
        storage = open_storage(tmp_path / str(number))
        process = os.fork()
        if not process:
            put(storage, number)
        ended = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
        storage.sweep()
        assert not (tmp_path / str(number) / ".unfinished").exists(), number
    assert number > 10
    assert storage.get("a") == b"1"


@pytest.mark.parametrize("call", ["mkdir", "flock"])
def test_a_sweep_while_a_writer_begins_takes_nothing_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    storage, left = open_storage(tmp_path / "store"), [3]
    module = {"mkdir": os, "flock": fcntl}[call]
    original = getattr(module, call)

    def swept(*args: object, **options: object) -> None:
        sweeps = left[0] > 0 and (call == "flock" or ".unfinished/" in str(args[0]))
        if sweeps and call == "flock":
            left[0] -= 1
            storage.sweep()
        original(*args, **options)
        if sweeps and call == "mkdir":
            left[0] -= 1
            storage.sweep()

    monkeypatch.setattr(module, call, swept)
    storage.put("a", b"1")
    assert (left, storage.get("a")) == ([0], b"1")


def test_locks_are_those_that_nfs_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux locks a file of NFS only through a descriptor that is open for writing."""
    lock = fcntl.flock

    def lock_of_nfs(file: object, operation: int) -> None:
        if operation & fcntl.LOCK_EX and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock_of_nfs)
    storage = open_storage(tmp_path / "store")
    assert storage.create("a", b"1")
    assert storage.swap("a", b"2", storage.head("a").version)
    storage.sweep()
    assert storage.get("a") == b"2"


def test_a_sweep_passes_over_the_files_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(tmp_path / "store")
    storage.put("a", b"1")
    (tmp_path / "store/.unfinished/other").mkdir(parents=True)
    opened = Path.open

    def denied(self: Path, *args: object, **options: object) -> object:
        if self.parent.name == "other":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return opened(self, *args, **options)

    monkeypatch.setattr(Path, "open", denied)
    storage.sweep()
    assert storage.get("a") == b"1"
