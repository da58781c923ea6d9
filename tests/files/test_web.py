"""Files of the web, from servers that are hostile."""

import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.servers import serving
from vitbackbone.files import web
from vitbackbone.files.cloud_requests import ServiceError
from vitbackbone.files.web import PrivateAddress, check_url, fetch, is_public, size_of

DATA = bytes(range(256)) * 1000


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: list[str] = []  # noqa: RUF012
    location = ""

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.split("?")[0].strip("/")
        with suppress(OSError):
            getattr(self, f"send_{name}", self.send_missing)()

    def send(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def send_file(self) -> None:
        found = self.headers.get("Range")
        if not found:
            return self.send(200, DATA, ETag='"1"')
        start, end = found.removeprefix("bytes=").split("-")
        part = DATA[int(start) : int(end or len(DATA)) + 1]
        return self.send(206, part, ETag='"1"', Content_Range=f"bytes {start}-{end}/{len(DATA)}")

    def send_norange(self) -> None:
        self.send(200, DATA)

    def send_missing(self) -> None:
        self.send(404)

    def send_denied(self) -> None:
        self.send(403)

    def send_teapot(self) -> None:
        self.send(418)

    def send_busy(self) -> None:
        self.send(503 if self.asked.count("/busy") < 3 else 200, b"at last")

    def send_redirect(self) -> None:
        self.send(302, Location="/file")

    def send_elsewhere(self) -> None:
        self.send(302, Location=self.location)

    def send_loop(self) -> None:
        self.send(302, Location="/loop")

    def send_large(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(2**40))
        self.end_headers()

    def send_endless(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        while True:
            self.wfile.write(DATA)

    def send_cut(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        self.wfile.write(DATA[:1000])
        self.close_connection = True

    def send_drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(1000):
            self.wfile.write(b"x")
            time.sleep(0.05)

    def send_dripping_head(self) -> None:
        for _ in range(1000):
            self.wfile.write(b"H")
            time.sleep(0.05)

    def send_nonsense(self) -> None:
        self.wfile.write(b"nonsense\r\n\r\n")
        self.close_connection = True


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(web, "PAUSE", 0.01)
    Server.asked.clear()
    with serving(Server) as url:
        yield url


def test_files_and_ranges_are_read(url: str) -> None:
    whole = fetch(f"{url}/file", private=True)
    assert whole.body == DATA
    assert whole.version == '"1"'
    for name in ("file", "norange"):
        part = fetch(f"{url}/{name}", 100, 50, private=True)
        assert part.body == DATA[100:150]
        assert size_of(part) == len(DATA)
    assert fetch(f"{url}/redirect", private=True).body == DATA
    assert fetch(f"{url}/file?a=b c&ü", private=True).body == DATA
    assert fetch(f"{url}/busy", private=True).body == b"at last"


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("missing", FileNotFoundError, "no such file"),
        ("denied", PermissionError, "denies access"),
        ("teapot", OSError, "HTTP 418"),
        ("loop", OSError, "redirects more than 5 times"),
        ("large", OSError, "has 1099511627776 bytes; want at most"),
        ("endless", OSError, "more than 1000000 bytes"),
        ("cut", ServiceError, "breaks off"),
        ("nonsense", ServiceError, "breaks off"),
        ("drip", ServiceError, "more than 0.5 s"),
        ("dripping_head", ServiceError, "more than 0.5 s"),
    ],
)
def test_hostile_answers_end_in_a_sentence(
    url: str, name: str, error: type[OSError], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "MAX_BYTES", 1_000_000)
    monkeypatch.setattr(web, "TRIES", 1)
    monkeypatch.setattr(web, "SECONDS", 0.5)
    before = threading.active_count()
    with pytest.raises(error, match=text):
        fetch(f"{url}/{name}", private=True)
    deadline = time.monotonic() + 10
    while threading.active_count() > before + 2:  # the server's own, which end in their time
        assert time.monotonic() < deadline
        time.sleep(0.01)


PRIVATE = """
    127.0.0.1 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 224.0.0.1 255.255.255.255 192.0.2.1
    ::1 :: fe80::1 fc00::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: 2001:db8::1
"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_private_addresses_are_told(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_public_addresses_are_told(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "127.1"]
)
def test_no_spelling_leads_to_this_machine(url: str, host: str) -> None:
    port = url.rpartition(":")[2]
    with pytest.raises(OSError, match=r"--allow-private-urls|unknown|resolved"):
        fetch(f"http://{host}:{port}/file")
    assert Server.asked == []


def test_a_redirect_to_a_private_address_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = url.rpartition(":")[2]
    monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.1")
    for location in (f"http://127.0.0.2:{port}/file", f"//127.0.0.2:{port}/file"):
        monkeypatch.setattr(Server, "location", location)
        with pytest.raises(PrivateAddress):
            fetch(f"{url}/elsewhere")
    for location in ("file:///etc/passwd", "ftp://127.0.0.1/a", "http://user:secret@127.0.0.1/"):
        monkeypatch.setattr(Server, "location", location)
        with pytest.raises(ValueError, match=r"not an address of the web|user name"):
            fetch(f"{url}/elsewhere")
    assert "/file" not in Server.asked


def test_the_connection_goes_to_the_address_that_was_checked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that changes its address between the check and the connection leads nowhere else."""
    answers = iter([[("93.184.215.14", 80)], [("127.0.0.1", int(url.rpartition(":")[2]))]])
    monkeypatch.setattr(
        web.socket,
        "getaddrinfo",
        lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", end) for end in next(answers)],
    )
    went: list[tuple[str, int]] = []

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        went.append(address)
        raise OSError("no network")

    monkeypatch.setattr(web.socket, "create_connection", connect)
    monkeypatch.setattr(web, "TRIES", 1)
    with pytest.raises(ServiceError, match="does not answer"):
        fetch("http://rebinding.example/file")
    assert went == [("93.184.215.14", 80)]


@pytest.mark.parametrize(
    "text",
    ["http://", "http:///a", "http://a:b/", "http://a:99999/", "file:///a", "http://u:p@a/", "http://a/\r\nX: y", "a"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_url(text)


def test_a_certificate_is_checked(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a server with a certificate that nobody knows, then with one that is trusted."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.x509.oid import NameOID

    key, name = rsa.generate_private_key(65537, 2048), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "both.pem").write_bytes(key.private_bytes(*pem) + certificate.public_bytes(pem[0]))
    (tmp_path / "ca.pem").write_bytes(certificate.public_bytes(pem[0]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    with serving(Server, context=context) as secure:
        with pytest.raises(OSError, match="the certificate of the server is not valid"):
            fetch(f"{secure}/file", private=True)
        trusting = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        monkeypatch.setattr(web, "_context", lambda: trusting)
        assert fetch(f"{secure}/file", private=True).body == DATA
        with pytest.raises(OSError, match="not valid"):
            fetch(f"{secure.replace('127.0.0.1', 'localhost')}/file", private=True)
        with pytest.raises(ServiceError, match="breaks off"):
            fetch(f"{url.replace('http:', 'https:')}/file", private=True)  # a server that speaks no TLS
