"""Data sets of the Hugging Face Hub as sources, from a server that answers as the Hub does."""

import hashlib
import io
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.servers import serving
from vitbackbone.store.sources import remote
from vitbackbone.store.sources.locate import locators, read_bytes
from vitbackbone.store.sources.source import list_inputs

IMAGES = [b"\x89PNG\r\n\x1a\n" + bytes([i]) * 40_000 for i in range(6)]


def table(images: list[bytes]) -> bytes:
    data = io.BytesIO()
    cells = [{"bytes": image, "path": None} for image in images]
    pq.write_table(pa.table({"image": cells, "label": [i % 2 for i in range(len(cells))]}), data, row_group_size=2)
    return data.getvalue()


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: dict[str, bytes] = {}  # noqa: RUF012
    asked: list[tuple[str, str]] = []  # noqa: RUF012  # path and range

    def log_message(self, *_: object) -> None: ...

    def send(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "X-Repo-Commit": "1" * 40, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def described(self, name: str) -> dict[str, object]:
        data = self.files[name]
        oid = hashlib.sha1(data).hexdigest()
        return {"type": "file", "path": name, "size": len(data), "oid": oid}

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        try:
            paths = json.loads(asked)["paths"]
        except ValueError:
            paths = [unquote(part.split("=")[1].replace("+", " ")) for part in asked.split("&") if "paths=" in part]
        found = [self.described(name) for name in self.files if name in paths]
        self.send(200, json.dumps(found).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append((path, self.headers.get("Range", "")))
        if "/tree/" in path:
            found = [self.described(name) for name in sorted(self.files)]
            return self.send(200, json.dumps(found).encode(), Content_Type="application/json")
        if "/resolve/" in path:
            data = self.files[path.split("/resolve/")[1].partition("/")[2]]
            start, end = self.headers["Range"].removeprefix("bytes=").split("-")
            where = f"bytes {start}-{end}/{len(data)}"
            return self.send(206, data[int(start) : int(end) + 1], Content_Range=where)
        if "/api/datasets/owner/name" in path:
            return self.send(200, json.dumps({"id": "owner/name", "sha": "1" * 40}).encode())
        return self.send(404, b'{"error": "Repository not found"}', X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    from huggingface_hub import HfFileSystem, constants, file_download

    with serving(Hub) as url:
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        # Releases before 1.0 keep a copy.
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        Hub.files = {
            "README.md": b"about",
            "data/test-0.parquet": table(IMAGES[4:]),
            "data/train-0.parquet": table(IMAGES[:4]),
        }
        Hub.asked = []
        HfFileSystem.clear_instance_cache()
        remote._hub.cache_clear()
        yield Hub
        remote._hub.cache_clear()
        HfFileSystem.clear_instance_cache()


@pytest.mark.parametrize("source", ["owner/name", "owner/name/data", "owner/name/data/*.parquet"])
def test_the_parquet_files_of_a_data_set_are_read_by_ranges(hub: type[Hub], source: str) -> None:
    inputs = list_inputs(f"hf://datasets/{source}")
    found = [read_bytes(at) for at in locators(inputs.root, inputs.table, inputs.table["bytes"].to_pylist())]
    assert found == [*IMAGES[4:], *IMAGES[:4]]
    assert inputs.labels == (0, 1, 0, 1, 0, 1)
    assert all(asked for path, asked in hub.asked if "/resolve/" in path)
    versions = inputs.table["version"].to_pylist()
    assert len(set(versions)) == 2
    hub.files["data/train-0.parquet"] = table(IMAGES[1:5])
    assert list_inputs(f"hf://datasets/{source}").table["version"].to_pylist()[-1] != versions[-1]


def test_one_file_of_a_data_set_is_a_source(hub: type[Hub]) -> None:
    inputs = list_inputs("hf://datasets/owner/name/data/train-0.parquet")
    assert len(inputs) == 4


def test_a_data_set_that_is_not_there_is_a_sentence(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="hf://datasets/owner/other"):
        list_inputs("hf://datasets/owner/other")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    remote._hub.cache_clear()
    with pytest.raises((OSError, ValueError), match="hf://datasets/owner/name"):
        list_inputs("hf://datasets/owner/name")
