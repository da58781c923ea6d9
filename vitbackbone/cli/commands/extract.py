"""The command `extract`: images to a feature store."""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vitbackbone.cli.model import load
from vitbackbone.cli.text import escaped, printable

if TYPE_CHECKING:
    from vitbackbone.store import RayCluster

SHOWN = 10  # failed images that are printed


def run_extract(args: argparse.Namespace) -> int:
    from vitbackbone.store import extract

    cluster = _cluster(args)
    with terminable():
        store = extract(
            load(args),
            args.source,
            args.out,
            tokens=args.tokens,
            layers=args.layers,
            batch_size=args.batch_size,
            shard_size=args.shard_size,
            resolution=args.resolution,
            keep_aspect=args.keep_aspect,
            decoding=args.decoding,
            max_pixels=args.max_pixels,
            dtype=args.dtype,
            precision=args.precision,
            engine=args.engine,
            workers=args.workers,
            device=args.device,
            devices=args.devices,
            slice=(args.slice.index, args.slice.count) if args.slice else (0, 1),
            cluster=cluster,
            fps=args.fps,
            stride=args.stride,
            keyframes=args.keyframes,
            retry_failed=args.retry_failed,
            allow_private_urls=args.allow_private_urls,
            progress=not args.quiet,
        )
    failed = store.failed
    if failed or not args.quiet:
        print(f"{len(store)} images read, {len(failed)} failed: {escaped(args.out)}")
    if store.missing and not args.quiet:
        print(f"  {store.missing} shards of other slices are not complete yet")
    lines = [f"failed: {escaped(path)}: {printable(error)}" for path, error in failed]
    _print_some(lines, f"FeatureStore({args.out!r}).failed")
    return 1 if failed and not len(store) else 0


def _cluster(args: argparse.Namespace) -> "RayCluster | None":
    """Return the cluster that is asked for. Raises `ValueError` if only its options are given."""
    from vitbackbone.store import RayCluster

    options = {name: vars(args)[f"ray_{name}"] for name in ("address", "actors", "cpus", "gpus")}
    given = {name: value for name, value in options.items() if value is not None}
    if args.cluster is None and given:
        raise ValueError(f"--ray-{next(iter(given))} is an option of a cluster; give --cluster ray too")
    return RayCluster(**given) if args.cluster else None


def _print_some(lines: list[str], more: str) -> None:
    for line in lines[:SHOWN]:
        print(f"  {line}")
    if len(lines) > SHOWN:
        print(f"  and {len(lines) - SHOWN} more: {more}")


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM, with which schedulers stop a job, end the command as Ctrl-C does: no half-written file, no lock."""

    def stop(*_: object) -> None:
        print("terminated; what is done is kept", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
