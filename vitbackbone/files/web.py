"""Files of the web: `http://` and `https://`. Every server is treated as hostile.

A host name is resolved once, and the connection goes to the address that was checked. A name that changes its address
in the meantime leads nowhere else. The same holds for every redirect. Sizes and times are limited. Proxies of the
environment are not used, because they would resolve the name again.
"""

import errno
import http.client
import ipaddress
import re
import socket
import ssl
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from threading import Timer
from urllib.parse import quote, urljoin, urlsplit

from vitbackbone.files.cloud_requests import ServiceError

MAX_BYTES = 2**27  # largest answer
SECONDS = 60.0  # longest time of one answer, redirects and repetitions included
SILENCE = 15.0  # longest time without a byte, in seconds
REDIRECTS = 5
TRIES = 3
PAUSE = 0.5  # seconds before the first repetition; it doubles
PASSING = (408, 425, 429, 500, 502, 503, 504)
NAT64 = ipaddress.ip_network("64:ff9b::/96")
AGENT = "vitbackbone"


class PrivateAddress(PermissionError):
    """The address belongs to this machine or to a private network, which a list from outside may not reach."""


class FileTooLarge(OSError):
    """The file has more than `MAX_BYTES`."""


@dataclass(frozen=True)
class WebAnswer:
    """An answer with a status of success."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def version(self) -> str:
        return self.headers.get("etag") or self.headers.get("last-modified") or ""


def fetch(
    url: str, start: int = 0, length: int | None = None, *, private: bool = False, method: str = "GET"
) -> WebAnswer:
    """Ask for a URL, or for `length` bytes of it from `start` on.

    `private`: whether the address may be private. Raises `ValueError` if the URL is not valid, `FileNotFoundError`,
    `PrivateAddress`, `FileTooLarge`, and `PermissionError` if the server denies access. Raises `ServiceError` if a
    fault stays through all tries, and `OSError` for any other refusal.
    """
    deadline, pause = time.monotonic() + SECONDS, PAUSE
    for _ in range(TRIES - 1):
        try:
            return _follow(url, start, length, private, method, deadline)
        except ServiceError:
            if time.monotonic() + pause >= deadline:
                raise
            time.sleep(pause)
            pause *= 2
    return _follow(url, start, length, private, method, deadline)


def check_url(url: str) -> None:
    """Raise `ValueError` if this is not a plain address of the web."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"is not a valid URL: {error}") from error
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise ValueError("is not an address of the web; want http:// or https:// and a host")
    if parts.username or parts.password:
        raise ValueError("holds a user name or password; want a URL without them")
    if port == 0 or not url.isprintable():
        raise ValueError("is not a valid URL")


def is_public(address: str) -> bool:
    """Tell whether an IP address is one of the open internet, and holds no other one inside."""
    ip = ipaddress.ip_address(address)
    inner: list[ipaddress.IPv4Address | None] = []
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in NAT64:
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    held = [one for one in inner if one is not None]
    if held:
        return all(is_public(str(one)) for one in held)
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _follow(url: str, start: int, length: int | None, private: bool, method: str, deadline: float) -> WebAnswer:
    for _ in range(REDIRECTS + 1):
        check_url(url)
        found = _ask(url, start, length, private, method, deadline)
        if isinstance(found, WebAnswer):
            return found
        url = urljoin(url, found)
    raise OSError(errno.ELOOP, f"the server redirects more than {REDIRECTS} times")


def _ask(url: str, start: int, length: int | None, private: bool, method: str, deadline: float) -> WebAnswer | str:
    """Send one request. Returns the answer, or the address of a redirect."""
    parts = urlsplit(url)
    host, secure = str(parts.hostname), parts.scheme.lower() == "https"
    port = parts.port or (443 if secure else 80)
    path = quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", safe="/%:@!$&'()*+,;=~-._?[]")
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    if start or length is not None:
        headers["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
    link = _connected(host, port, private)
    if secure:
        link = _context().wrap_socket(link, server_hostname=host, do_handshake_on_connect=False)
    with link, closing(_Watch(link, deadline)):
        try:
            if isinstance(link, ssl.SSLSocket):
                link.do_handshake()
            connection = http.client.HTTPConnection(host, port, timeout=SILENCE)
            connection.sock = link
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            if response.status in (301, 302, 303, 307, 308) and "location" in names:
                return names["location"]
            _check_status(response.status)
            skipped = start if response.status == 200 else 0
            wanted = MAX_BYTES if length is None else length
            body = b"" if method == "HEAD" else _body(response, names, skipped + wanted, length is None)[skipped:]
            return WebAnswer(response.status, names, body)
        except ssl.SSLCertVerificationError as error:
            raise OSError(
                errno.EPERM, f"the certificate of the server is not valid ({error.verify_message})"
            ) from error
        except (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
            raise _away(deadline) from error
        except (ValueError, AttributeError) as error:  # the watch closed the socket under the reader
            if time.monotonic() < deadline:
                raise
            raise _away(deadline) from error


def _body(response: http.client.HTTPResponse, names: dict[str, str], most: int, whole: bool) -> bytes:
    """Read at most `most` bytes. `whole`: more of them are an error."""
    said = names.get("content-length", "")
    if whole and said.isdigit() and int(said) > most:
        raise FileTooLarge(errno.EFBIG, f"the file has {said} bytes; want at most {most}")
    chunks, size = [], 0
    while size < most + whole and (data := response.read1(min(1 << 16, most + whole - size))):
        chunks.append(data)
        size += len(data)
    if whole and size > most:
        raise FileTooLarge(errno.EFBIG, f"the file has more than {most} bytes")
    if said.isdigit() and size < min(int(said), most):
        raise http.client.IncompleteRead(b"", int(said) - size)
    return b"".join(chunks)


def _check_status(status: int) -> None:
    if status in (404, 410):
        raise FileNotFoundError(errno.ENOENT, f"the server has no such file (HTTP {status})")
    if status in (401, 402, 403, 407, 451):
        raise PermissionError(errno.EACCES, f"the server denies access (HTTP {status})")
    if status in PASSING:
        raise ServiceError(errno.EAGAIN, f"the server cannot answer now (HTTP {status})")
    if status not in (200, 203, 206):
        raise OSError(errno.EPROTO, f"the server refuses the request (HTTP {status})")


def _connected(host: str, port: int, private: bool) -> socket.socket:
    """Connect to a checked address of a host."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise ServiceError(errno.EAGAIN, "the name of the server cannot be resolved now") from error
        raise OSError(errno.EHOSTUNREACH, "the name of the server is unknown") from error
    except UnicodeError as error:
        raise ValueError("is not a valid URL: its host is not a name") from error
    allowed = [address[4] for address in found if private or is_public(str(address[4][0]).partition("%")[0])]
    if not allowed:
        raise PrivateAddress(
            errno.EACCES,
            "the address belongs to this machine or to a private network; give --allow-private-urls if it may be read",
        )
    last: OSError | None = None
    for address in allowed:
        try:
            return socket.create_connection((str(address[0]), port), timeout=SILENCE)
        except OSError as error:
            last = error
    raise ServiceError(errno.EHOSTUNREACH, "the server does not answer") from last


class _Watch:
    """Closes a socket at the deadline, whatever its reader waits for: a server that drips must not hold a reader."""

    def __init__(self, link: socket.socket, deadline: float) -> None:
        self._link = link
        self._timer = Timer(max(0.0, deadline - time.monotonic()), self._cut)
        self._timer.daemon = True
        self._timer.start()

    def close(self) -> None:
        self._timer.cancel()

    def _cut(self) -> None:
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)


def _away(deadline: float) -> ServiceError:
    if time.monotonic() >= deadline:
        return ServiceError(errno.ETIMEDOUT, f"the server takes more than {SECONDS:g} s")
    return ServiceError(errno.ECONNRESET, "the server breaks off its answer")


@cache
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()


def size_of(answer: WebAnswer) -> int:
    """Return the size of the whole file in an answer. Raises `OSError` if the server does not tell it."""
    found = re.search(r"/(\d+)$", answer.headers.get("content-range", ""))
    said = found[1] if found else answer.headers.get("content-length", "")
    if not said.isdigit() or (answer.status == 206 and not found):
        raise OSError(errno.EPROTO, "the server does not tell the size of the file")
    return int(said)
