"""Servers of this machine for tests: by a handler, by a program of npm, and behind a proxy that injects faults."""

import http.client
import random
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

import pytest


@dataclass
class Faults:
    """The faults that the proxy puts into requests, each with its share, and the requests that it counted."""

    refused: float = 0.0  # 503 before the service sees the request
    lost: float = 0.0  # the service does the work, and the connection is cut
    failed: float = 0.0  # the service does the work, and the answer is 500
    cut: float = 0.0  # half of the body, then the connection is cut
    slow: float = 0.0  # the body drips
    denied: float = 0.0  # 403
    only: str = ""  # faults happen to requests whose method and path match this pattern
    most: int = 10**9  # faults in all
    seed: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    signatures: list[str] = field(default_factory=list)  # what each request authorised itself by

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = Lock()

    def choose(self, request: tuple[str, str, str]) -> str:
        with self._lock:
            self.requests.append(request)
            if sum(self.counts.values()) >= self.most or not re.search(self.only, f"{request[0]} {request[1]}"):
                return "none"
            at = self._random.random()
            for kind in ("refused", "lost", "failed", "cut", "slow", "denied"):
                at -= getattr(self, kind)
                if at < 0:
                    self.counts[kind] = self.counts.get(kind, 0) + 1
                    return kind
            return "none"


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: Faults
    backend: tuple[str, int]

    def log_message(self, *_: object) -> None: ...

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.faults.choose((self.command, self.path, self.headers.get("Range", "")))
        self.faults.signatures.append(self.headers.get("Authorization", ""))
        if fault == "denied":
            return self._answer(403, {}, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
        if fault == "refused":
            return self._answer(503, {}, b"<Error><Code>SlowDown</Code><Message>Slow down</Message></Error>")
        connection = http.client.HTTPConnection(*self.backend)
        try:
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        if fault == "lost":
            return self._hang_up()
        if fault == "failed":
            return self._answer(500, {}, b"<Error><Code>InternalError</Code><Message>We failed</Message></Error>")
        return self._answer(response.status, dict(response.getheaders()), data, fault)

    def _answer(self, status: int, headers: dict[str, str], data: bytes, fault: str = "none") -> None:
        self.send_response(status)
        said = {name.lower(): value for name, value in headers.items()}
        length = said.get("content-length", len(data)) if self.command == "HEAD" else len(data)
        skipped = ("content-length", "transfer-encoding", "connection", "date", "server")
        for name, value in headers.items():
            if name.lower() not in skipped:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "cut" and len(data) > 1:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            return self._hang_up()
        pieces = 4 if fault == "slow" else 1
        step = -(-len(data) // pieces) or 1
        for start in range(0, len(data), step):
            self.wfile.write(data[start : start + step])
            self.wfile.flush()
            time.sleep(0.02 if fault == "slow" else 0)

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None: ...  # a client that hangs up is what the tests ask for


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve by a handler in threads of this process, by TLS if there is a context. Gives the URL."""
    server = _Server(("127.0.0.1", 0), handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http{'s' * (context is not None)}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def proxy(backend: str, faults: Faults) -> Iterator[str]:
    """Put a proxy that injects faults before a server. Gives its URL."""
    host, _, port = backend.removeprefix("http://").partition(":")
    handler = type("Proxy", (_Proxy,), {"faults": faults, "backend": (host, int(port))})
    with serving(handler) as url:
        yield url


@pytest.fixture
def quick_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests be repeated after milliseconds."""
    repeat_quickly(monkeypatch)


def repeat_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests of this process be repeated after milliseconds."""
    from vitbackbone.files import bucket_clients, cloud_requests

    pauses = {"init_backoff": timedelta(milliseconds=2), "max_backoff": timedelta(milliseconds=20), "base": 2}
    monkeypatch.setitem(bucket_clients.RETRIES, "backoff", pauses)
    monkeypatch.setattr(cloud_requests, "PAUSE", 0.005)


@contextmanager
def npm_server(name: str, *options: str) -> Iterator[str]:
    """Serve by a program of npm, which is skipped where it is not installed. `{port}` and `{folder}` are filled in."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed (npm install -g {name.split('-')[0]})")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [program, *(option.format(port=port) for option in options)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
            assert time.monotonic() < deadline, f"{name} did not start"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
