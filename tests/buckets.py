"""Buckets on this machine for tests: S3, Azure's blobs and Google's storage."""

import base64
import hmac
import io
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Lock, Thread
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.helpers import photo
from tests.servers import npm_server, serving

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@contextmanager
def moto() -> Iterator[str]:
    """Serve S3 in memory, with a bucket `photos`. Gives the URL.

    S3 looks at a condition and writes in one step, moto in two. So one request is served at a time.
    """
    server = pytest.importorskip("moto.server")
    from werkzeug.serving import make_server

    app, lock = server.DomainDispatcherApplication(server.create_backend_app), Lock()

    def one_at_a_time(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        with lock:
            return app(environ, start)

    listener = make_server("127.0.0.1", 0, one_at_a_time, threaded=True, request_handler=server.MotoRequestHandler)
    thread = Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.server_port}"
        urllib.request.urlopen(f"{url}/moto-api/reset", data=b"").close()
        make_bucket(url, "photos")
        yield url
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


def make_bucket(url: str, name: str) -> None:
    urllib.request.urlopen(urllib.request.Request(f"{url}/{name}", method="PUT")).close()


@dataclass(frozen=True)
class Service:
    """A service with buckets that runs on this machine."""

    scheme: str
    server: str  # its URL
    account: str = ""  # part of the path of Azure's URLs

    def bucket(self, name: str) -> str:
        """Make a bucket. Returns its URL."""
        if self.scheme == "az":
            make_container(f"{self.server}/{self.account}", name)
        else:
            make_bucket(self.server, name)
        return f"{self.scheme}://{name}"

    def environment(self, through: str) -> dict[str, str]:
        """Return the variables by which a process goes to the service through a proxy at the URL `through`."""
        if self.scheme != "az":
            return {**KEYS, "AWS_ENDPOINT_URL": through}
        settings = {"AccountName": self.account, "AccountKey": ACCOUNT_KEY, "BlobEndpoint": f"{through}/{self.account}"}
        return {"AZURE_STORAGE_CONNECTION_STRING": "".join(f"{key}={value};" for key, value in settings.items())}


@contextmanager
def serving_buckets(scheme: str, folder: Path) -> Iterator[Service]:
    """Serve S3 in memory, or Azure's blobs in a folder."""
    if scheme == "az":
        with azurite(folder) as url:
            server, _, account = url.rpartition("/")
            yield Service("az", server, account)
    else:
        with moto() as url:
            yield Service("s3", url)


ACCOUNT = "devstoreaccount1"  # of Azurite, with its published key
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def azurite(folder: Path) -> Iterator[str]:
    """Serve Azure's blobs, with a container `photos`. Gives the URL of the account."""
    options = ("--blobPort", "{port}", "--location", str(folder), "--silent", "--skipApiVersionCheck")
    with npm_server("azurite-blob", *options) as url:
        make_container(f"{url}/{ACCOUNT}", "photos")
        yield f"{url}/{ACCOUNT}"


def make_container(account: str, name: str) -> None:
    """Make a container of an account, given by its URL."""
    sent = formatdate(usegmt=True)
    named = f"x-ms-date:{sent}\nx-ms-version:2021-08-06\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    text = "PUT" + "\n" * 12 + named
    signature = base64.b64encode(hmac.digest(base64.b64decode(ACCOUNT_KEY), text.encode(), "sha256")).decode()
    headers = {"x-ms-date": sent, "x-ms-version": "2021-08-06", "Authorization": f"SharedKey {ACCOUNT}:{signature}"}
    address = f"{account}/{name}?restype=container"
    urllib.request.urlopen(urllib.request.Request(address, method="PUT", headers=headers)).close()


class _Google(BaseHTTPRequestHandler):
    """Serves Google's storage by its XML interface, with generations: what obstore uses of it."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, tuple[bytes, int]]
    parts: dict[str, bytes]
    lock: Lock

    def log_message(self, *_: object) -> None: ...

    def _send(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _key(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        return unquote(parts.path).lstrip("/").partition("/")[2], parse_qs(parts.query, keep_blank_values=True)

    def do_PUT(self) -> None:
        (key, query), data = self._key(), self.rfile.read(int(self.headers["Content-Length"]))
        if "partNumber" in query:
            self.parts[f"{key} {int(query['partNumber'][0]):05}"] = data
            return self._send(200, ETag=f'"{len(self.parts)}"')
        return self._write(key, data)

    def do_POST(self) -> None:
        (key, query), _ = self._key(), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "uploads" in query:
            return self._send(
                200, b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
            )
        whole = b"".join(self.parts[name] for name in sorted(self.parts) if name.startswith(f"{key} "))
        return self._write(key, whole, b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>")

    def _write(self, key: str, data: bytes, answer: bytes = b"") -> None:
        wanted = self.headers.get("x-goog-if-generation-match")
        with self.lock:
            generation = self.objects[key][1] if key in self.objects else 0
            if wanted is not None and int(wanted) != generation:
                return self._send(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            generation = time.time_ns()
            self.objects[key] = data, generation
        return self._send(200, answer, ETag=f'"{generation:x}"', x_goog_generation=str(generation))

    def do_GET(self) -> None:
        key, query = self._key()
        if "list-type" in query:
            prefix, offset = query.get("prefix", [""])[0], query.get("start-after", [""])[0]
            items = "".join(
                f"<Contents><Key>{name}</Key>"
                f"<LastModified>{datetime.fromtimestamp(generation / 1e9, UTC):%FT%T.000Z}</LastModified>"
                f"<ETag>&quot;{generation:x}&quot;</ETag><Size>{len(data)}</Size></Contents>"
                for name, (data, generation) in sorted(self.objects.items())
                if name.startswith(prefix) and name > offset
            )
            return self._send(
                200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode()
            )
        if key not in self.objects:
            return self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
        data, generation = self.objects[key]
        about = {"ETag": f'"{generation:x}"', "x_goog_generation": str(generation)}
        about["Last_Modified"] = formatdate(generation / 1e9, usegmt=True)
        found = self.headers.get("Range")
        if self.command == "HEAD" or not found:
            return self._send(200, data, **about)
        start, end = (int(end) for end in found.removeprefix("bytes=").split("-"))
        if start >= len(data):
            return self._send(416, b"<Error><Code>InvalidRange</Code></Error>")
        end = min(end, len(data) - 1)
        return self._send(206, data[start : end + 1], Content_Range=f"bytes {start}-{end}/{len(data)}", **about)

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        key, _ = self._key()
        self._send(204 if self.objects.pop(key, None) else 404)


def google() -> AbstractContextManager[str]:
    """Serve Google's storage in memory. Gives the URL."""
    return serving(type("Google", (_Google,), {"objects": {}, "parts": {}, "lock": Lock()}))


def put_folder(folder: Path, storage: object) -> None:
    """Copy the files of a folder into a storage, under their relative paths."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            storage.put(file.relative_to(folder).as_posix(), file.read_bytes())  # type: ignore[attr-defined]


class _ManyKeys(BaseHTTPRequestHandler):
    """Lists a bucket of `count` keys, a thousand a page, as S3 does. Nothing else is there."""

    protocol_version = "HTTP/1.1"
    count = 1_000_000

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        start = int(asked.get("continuation-token", ["0"])[0])
        stop = min(start + 1000, self.count)
        item = (
            "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            "<ETag>&quot;{:032x}&quot;</ETag><Size>60000</Size></Contents>"
        )
        items = "".join(item.format(f"photos/{i // 1000:04}/photo-{i:07}.jpg", i) for i in range(start, stop))
        more = stop < self.count
        token = f"<NextContinuationToken>{stop}</NextContinuationToken>" if more else ""
        data = (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>many</Name>'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{items}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def many_keys(count: int) -> AbstractContextManager[str]:
    """Serve the list of a bucket of `count` keys. Gives the URL."""
    return serving(type("ManyKeys", (_ManyKeys,), {"count": count}))


@contextmanager
def going_to(
    url: str, monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str] = MappingProxyType(KEYS)
) -> Iterator[None]:
    """Let this process go to the S3 server at `url`, and forget its clients afterwards.

    `environment`: the variables of another service, or further ones.
    """
    from vitbackbone.files.bucket_clients import _client
    from vitbackbone.store.sources.remote import _bucket

    caches = (_client, _bucket)
    for name, value in {"AWS_ENDPOINT_URL": url, **environment}.items():
        monkeypatch.setenv(name, value)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@contextmanager
def photos_in_shards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve the bucket `photos` with three shards of four photos, and let this process go to it."""
    from vitbackbone.files import open_storage

    with moto() as url, going_to(url, monkeypatch):
        for shard in range(3):
            data = io.BytesIO()
            with tarfile.open(fileobj=data, mode="w") as tar:
                for i in range(4):
                    image = io.BytesIO()
                    photo(40, 52, seed=4 * shard + i).save(image, "PNG")
                    member = tarfile.TarInfo(f"{4 * shard + i:02}.png")
                    member.size = image.tell()
                    tar.addfile(member, io.BytesIO(image.getvalue()))
            open_storage("s3://photos/shards").put(f"part-{shard:04}.tar", data.getvalue())
        yield
