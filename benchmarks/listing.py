"""How listing a source of many names grows with their number: CPU time and memory, and the exponents.

    python -m benchmarks.listing                                   # 10,000, 100,000 and 1,000,000 names
    python -m benchmarks.listing --sources shard.tar bucket --names 1000 1000000

Each listing runs in a process of its own. A `.tar` has no table of contents, so that all of it is read. `remote.tar`
is one that is in a bucket. The server of a bucket is a thread of the same process, and its CPU time counts.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.bucket import connect
from benchmarks.store_scale import report
from tests.buckets import many_keys
from tests.servers import serving
from vitbackbone import list_inputs

SOURCES = (
    "list.csv",
    "list.parquet",
    "shard.tar",
    "remote.tar",
    "bucket",
    "pattern",
)  # "pattern": a glob on the bucket's keys


def names(count: int) -> Iterator[str]:
    return (f"folder-{i // 1000:05}/photo-{i:08}.jpg" for i in range(count))


def write(file: Path, count: int) -> None:
    """Write a source of `count` names. The members of an archive have 16 bytes each and are not pictures."""
    if file.suffix == ".parquet":
        pq.write_table(pa.table({"path": list(names(count))}), file)
    elif file.suffix == ".csv":
        with file.open("w") as lines:
            lines.write("path\n")
            lines.writelines(f"{name}\n" for name in names(count))
    else:
        with file.open("wb") as archive:
            for name in names(count):
                archive.write(header(name, 16) + f"{hash(name):16x}".encode().ljust(512, b"\0"))
            archive.write(bytes(1024))


def header(name: str, size: int) -> bytes:
    """Return the header of a member of a `.tar` (POSIX ustar). `tarfile` takes some minutes for a million."""
    fields = name.encode().ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"00000000000\0"
    rest = b"0".ljust(101, b"\0") + b"ustar\00000"
    return (fields + b"%06o\0 " % (sum(fields + rest) + 8 * ord(" ")) + rest).ljust(512, b"\0")


class OneFile(BaseHTTPRequestHandler):
    """Serves ranges of one file under every key, as S3 does."""

    protocol_version = "HTTP/1.1"
    file: Path

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        size, asked = self.file.stat().st_size, self.headers.get("Range")
        start, end = map(int, asked.removeprefix("bytes=").split("-")) if asked else (0, size - 1)
        end = min(end, size - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(end + 1 - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.send_header("ETag", '"one"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            with self.file.open("rb") as data:
                data.seek(start)
                self.wfile.write(data.read(end + 1 - start))

    do_HEAD = do_GET


def measure(source: str, count: int) -> dict[str, float]:
    """Return the CPU seconds of the listing, and the MiB by which the peak of memory grew."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if source in ("bucket", "pattern"):
            connect(stack.enter_context(many_keys(count)))
            place = "s3://many/photos/**/*.jpg" if source == "pattern" else "s3://many/photos"
        else:
            place = f"{folder}/{source}"
            command = [sys.executable, "-m", "benchmarks.listing", "--write", place, str(count)]
            subprocess.run(command, check=True)  # its memory is not this process's
            if source == "remote.tar":
                connect(stack.enter_context(serving(type("Shard", (OneFile,), {"file": Path(place)}))))
                place = "s3://many/shard.tar"
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        found = len(list_inputs(place))
        seconds = time.process_time() - began
        assert found == count
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return {"names": count, "CPU seconds": seconds, "MiB": max(grown, 1) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], metavar="N")
    parser.add_argument("--sources", nargs="+", default=SOURCES, choices=SOURCES)
    parser.add_argument("--one", nargs=2, metavar=("SOURCE", "N"), help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, metavar=("FILE", "N"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        write(Path(args.write[0]), int(args.write[1]))
    elif args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]))))
    else:
        for source in args.sources:
            rows = []
            for count in args.names:
                command = [sys.executable, "-m", "benchmarks.listing", "--one", source, str(count)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                rows.append(json.loads(done.stdout))
            report(source, "names", rows)


if __name__ == "__main__":
    main()
