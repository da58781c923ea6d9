"""A storage in a bucket: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`, through obstore.

A PUT is there whole or not at all, so nothing needs a rename or a lock. Two habits of services need care:

- An answer may get lost after the service did the work. A repeated create then finds the object that it wrote, and a
  repeated swap its own version. Both are read back and compared.
- Some services accept a conditional write and ignore the condition. A store there would lose rows without a sign. Some
  proxies change ETags, so that no condition holds. Each process probes for both before its first conditional write.
"""

import errno
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from vitbackbone.files.bucket_clients import CREDENTIALS, client_of
from vitbackbone.files.cloud_requests import PAUSE, ConditionsUnusable, repeat, status_of
from vitbackbone.files.storage import Stored

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta, PutMode, PutResult
    from obstore.store import ObjectStore

PART = 1 << 23  # bytes of one request of a large write; services want at least 5 MiB
READ_PART = 1 << 22  # bytes of one request of a large read
PARALLEL = 8  # parts of one object under way at once
LOST = 3  # uploads in parts that a service has ended already, and says so when a lost answer makes obstore ask again
RACES = 20  # creates that may meet another one under way
PROBE = ".probe"  # keys of the probe begin so; no list shows them

IGNORED = (
    "this service accepts conditional writes and ignores their conditions, so that two writers would overwrite each "
    "other unseen"
)
REFUSED = (
    "this service refuses a conditional write with the ETag that it gave itself, as behind a proxy that changes ETags, "
    "so that no record could be replaced"
)

T = TypeVar("T")


def open_bucket(url: str) -> "ObjectStorage":
    """Open the storage of a URL. Nothing is asked of the service yet.

    Raises `ValueError` if the URL names no bucket or its prefix is not a path, and `ImportError` without obstore.
    """
    found = re.fullmatch(r"([A-Za-z0-9]+):/{1,2}([^/]+)(?:/(.*))?", url, re.DOTALL)
    if not found or found[1].lower() not in CREDENTIALS:
        raise ValueError(f"{url!r} names no bucket; want a URL such as s3://BUCKET/PREFIX")
    storage = ObjectStorage(f"{found[1].lower()}://{found[2]}", (found[3] or "").strip("/"))
    if storage.prefix:
        check_key(storage.prefix)
    client_of(storage.bucket)  # a missing library or a wrong name is an error here and not in the middle of a run
    return storage


def check_key(key: str) -> None:
    """Raise `ValueError` if a bucket cannot have this key, or obstore cannot ask for it."""
    if any(part in ("", ".", "..") or not part.isprintable() for part in key.split("/")):
        raise ValueError(f"{key!r} is not a key of a bucket; want a path without '//', '.' and '..'")


class ObjectStorage:
    """A `Storage` in a bucket, below a prefix. `bucket`: the scheme and the name, such as `s3://photos`."""

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self.bucket = bucket
        self.prefix = prefix
        self._probed = 0  # the process that has probed the service

    def __repr__(self) -> str:
        return f"ObjectStorage({self.url!r})"

    def __reduce__(self) -> "tuple[type[ObjectStorage], tuple[str, str]]":
        return ObjectStorage, (self.bucket, self.prefix)

    @property
    def url(self) -> str:
        return f"{self.bucket}/{self.prefix}" if self.prefix else self.bucket

    def get(self, key: str) -> bytes:
        return self._get(key)[0]

    def get_range(self, key: str, start: int, length: int) -> bytes:
        if length <= READ_PART:
            return self.read(key, start, length)
        stored = self._described(key)
        return self.read_parts(key, start, min(length, stored.size - start))

    def read(self, key: str, start: int, length: int, etag: str | None = None) -> bytes:
        """Read a range by one request. `etag`: raises `PreconditionError` of obstore if the object has another one."""
        import obstore

        if length <= 0:
            return b""

        def ask(client: "ObjectStore", path: str) -> bytes:
            options: GetOptions = {"range": (start, start + length)}
            if etag:
                options["if_match"] = etag
            try:
                return bytes(obstore.get(client, path, options=options).bytes())
            except obstore.exceptions.BaseError as error:
                if status_of(error) == 416 or "object was only" in str(error):  # the range lies after the end
                    return b""
                raise

        return self._ask(key, ask)

    def read_parts(self, key: str, start: int, length: int, etag: str | None = None) -> bytes:
        """Read a long range, which is inside the object, by several requests at once."""
        starts = range(start, start + length, READ_PART)
        with ThreadPoolExecutor(PARALLEL) as threads:
            parts = threads.map(lambda at: self.read(key, at, min(READ_PART, start + length - at), etag), starts)
            return b"".join(parts)

    def head(self, key: str) -> Stored | None:
        import obstore

        try:
            return self._stored(key, self._ask(key, obstore.head))
        except FileNotFoundError:
            return None

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stored]:
        whole = f"{self.prefix}/{prefix}" if self.prefix else prefix
        folder = whole.rpartition("/")[0]  # obstore lists whole folders
        skip = len(self.prefix) + 1 if self.prefix else 0
        begin = max(self._path(after) if after else "", whole[:-1] if whole != f"{folder}/" else "")
        for meta in self._list(folder, begin):
            path = meta["path"]
            if path.startswith(whole) and not path.startswith(PROBE, skip):
                yield self._stored(path[skip:], meta)
            elif path > whole and not path.startswith(whole):
                return

    def put(self, key: str, data: bytes | Path) -> None:
        self._put(key, data, "overwrite")

    def create(self, key: str, data: bytes) -> bool:
        self._probe()
        return self._create(key, data)

    def swap(self, key: str, data: bytes, version: str) -> str | None:
        self._probe()
        return self._swap(key, data, version)

    def delete(self, key: str) -> None:
        import obstore

        try:
            self._ask(key, obstore.delete)
        except FileNotFoundError:
            return

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="vitbackbone-") as folder:
            yield Path(folder)

    def sweep(self) -> None:
        """Do nothing: a write that was broken off left no object, and its parts are the service's to remove."""

    def local_path(self, key: str) -> Path | None:
        return None

    def _create(self, key: str, data: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError

        for _ in range(RACES):
            try:
                self._put(key, data, "create")
                return True
            except AlreadyExistsError:
                try:
                    return self.get(key) == data
                except FileNotFoundError:  # another create is under way, or the object was deleted just now
                    time.sleep(PAUSE)
        raise OSError(errno.EBUSY, "other writers keep creating and deleting this object", self._place(key))

    def _swap(self, key: str, data: bytes, version: str) -> str | None:
        from obstore.exceptions import PreconditionError

        etag, _, generation = version.partition(" ")
        if self.bucket.startswith("gs:") and not generation:  # a list tells no generations
            now = self.head(key)
            if now is None or now.version.partition(" ")[0] != etag:
                return None
            generation = now.version.partition(" ")[2]
        try:
            written = self._put(key, data, {"version": generation} if generation else {"e_tag": etag})
            return self._version(written["e_tag"], written["version"])
        except (PreconditionError, FileNotFoundError):
            try:
                found, stored = self._get(key)
            except FileNotFoundError:
                return None
            return stored.version if found == data else None

    def _get(self, key: str) -> tuple[bytes, Stored]:
        import obstore

        def ask(client: "ObjectStore", path: str) -> tuple[bytes, Stored]:
            result = obstore.get(client, path)
            return bytes(result.bytes()), self._stored(key, result.meta)

        return self._ask(key, ask)

    def _put(self, key: str, data: bytes | Path, mode: "PutMode") -> "PutResult":
        import obstore

        size = data.stat().st_size if isinstance(data, Path) else len(data)
        several = mode == "overwrite" and size > 2 * PART
        content = data if several or isinstance(data, bytes) else data.read_bytes()

        def put(client: "ObjectStore", path: str) -> "PutResult":
            return obstore.put(
                client, path, content, mode=mode, use_multipart=several, chunk_size=PART, max_concurrency=PARALLEL
            )

        def ask(client: "ObjectStore", path: str) -> "PutResult":
            for _ in range(LOST if several else 0):
                try:
                    return put(client, path)
                except (FileNotFoundError, obstore.exceptions.GenericError) as error:
                    if status_of(error) not in (400, 404):
                        raise
            return put(client, path)

        return self._ask(key, ask)

    def _described(self, key: str) -> Stored:
        stored = self.head(key)
        if stored is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._place(key))
        return stored

    def _list(self, folder: str, after: str) -> "Iterator[ObjectMeta]":
        """Yield all objects of a folder after the path `after`. A broken listing continues where it stopped."""
        import obstore

        pages: list[Iterator[Sequence[ObjectMeta]]] = []

        def page() -> "Sequence[ObjectMeta]":
            if not pages:
                client = client_of(self.bucket)
                stream: Any = obstore.list(client, folder or None, offset=after or None, chunk_size=1000)
                pages.append(iter(stream))
            try:
                return next(pages[0], [])
            except BaseException:
                pages.clear()  # a listing that failed cannot continue
                raise

        while found := repeat(page, f"{self.bucket}/{folder}"):
            yield from found
            after = found[-1]["path"]

    def _probe(self) -> None:
        """Raise `ConditionsUnusable` if the service ignores the conditions of writes, or no ETag fulfils them.

        The key is always the same, so that a killed process leaves nothing that the next one does not remove. Another
        process may remove it in the middle of this probe, so that a suspicion is confirmed with a key of one's own.
        """
        if self._probed == os.getpid():
            return
        if self._try_conditions(PROBE) and (fault := self._try_conditions(f"{PROBE}-{uuid4().hex}")):
            advice = "keep the store on a service that respects If-None-Match and If-Match, or in a folder"
            raise ConditionsUnusable(errno.ENOTSUP, f"{fault}; {advice}", self.url)
        self._probed = os.getpid()

    def _try_conditions(self, key: str) -> str | None:
        """Return what is wrong with the conditional writes of the service, or None."""
        try:
            if self._create(key, b"1") and self._create(key, b"2"):
                return IGNORED
            stored = self.head(key)
            if stored is None:
                return None  # another process has just ended its probe
            etag, _, generation = stored.version.partition(" ")
            wrong = self._version(re.sub(r"[0-9A-Za-z]", "0", etag), "1" if generation else None)
            if self._swap(key, b"3", wrong) is not None:
                return IGNORED
            return REFUSED if self._swap(key, b"4", stored.version) is None else None
        finally:
            self.delete(key)

    def _stored(self, key: str, meta: "ObjectMeta") -> Stored:
        version = self._version(meta["e_tag"], meta["version"])
        return Stored(key, meta["size"], version, meta["last_modified"].timestamp())

    def _version(self, etag: str | None, generation: str | None) -> str:
        """Return the version of an object: its ETag, with the generation if a swap needs it (Google)."""
        return f"{etag} {generation}" if generation and self.bucket.startswith("gs:") else etag or "-"

    def _path(self, key: str) -> str:
        check_key(key)
        return f"{self.prefix}/{key}" if self.prefix else key

    def _place(self, key: str) -> str:
        return f"{self.url}/{key}"

    def _ask(self, key: str, request: "Callable[[ObjectStore, str], T]") -> T:
        path = self._path(key)
        return repeat(lambda: request(client_of(self.bucket), path), self._place(key))
