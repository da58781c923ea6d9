"""The commands `extract`, `verify`, `log`, `prune` and `export`: photos to a feature store, and its upkeep."""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vitbackbone.cli.model import load
from vitbackbone.cli.output import print_json
from vitbackbone.cli.places import folder_beside
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


def run_verify(args: argparse.Namespace) -> int:
    from vitbackbone.store import verify

    found = verify(args.store, progress=not args.quiet)
    store, count = escaped(args.store), len(found.problems)
    if args.json:
        problems = [{"file": file, "problem": problem} for file, problem in found.problems]
        print_json({"store": args.store, "shards": found.shards, "images": found.images, "problems": problems})
    elif found.problems:
        repair = "`vitbackbone extract` with the same arguments repairs what the last snapshot needs"
        print(f"{store}: {count} problems; {repair}")
        for file, problem in found.problems:
            print(f"  {escaped(str(file))}: {printable(problem)}")
    elif not args.quiet:
        print(f"{store}: {found.images} images in {found.shards} shards, all files as they were written")
    return 1 if found.problems else 0


def run_log(args: argparse.Namespace) -> int:
    from vitbackbone.store import history

    snapshots = history(args.store)
    if args.json:
        keys = ("number", "made", "why", "parent", "root")
        shown = [{key: getattr(one, key) for key in keys} | dict(one.counts) for one in snapshots]
        print_json({"store": args.store, "snapshots": shown})
        return 0
    print(f"{'snapshot':>8}  {'made':25}  {'by':7}  {'images':>9}  {'read':>9}  {'failed':>7}  {'gone':>7}  shards")
    for one in snapshots:
        counts = one.counts
        left = f", {counts.pending} to compute" if counts.pending else ""
        numbers = f"{counts.rows:>9}  {counts.read:>9}  {counts.failed:>7}  {counts.gone:>7}  {counts.shards}{left}"
        print(f"{one.number:>8}  {printable(one.made):25}  {printable(one.why):7}  {numbers}")
    return 0


def run_prune(args: argparse.Namespace) -> int:
    from vitbackbone.store import prune

    done = prune(args.store, args.keep, args.gone)
    if not args.quiet:
        rows = f"; {done.rows} rows of images that are gone" if args.gone else ""
        print(
            f"{escaped(args.store)}: removed {done.snapshots} snapshots and {done.objects} files of {done.bytes:,} "
            f"bytes{rows}"
        )
    return 0


def run_export(args: argparse.Namespace) -> int:
    from vitbackbone.store import FeatureStore, export

    if args.out and args.place:
        raise ValueError(f"two output folders were given, {args.place} and {args.out}; want one")
    out = folder_beside(args.out or args.place, args.store, f"export-{args.format}")
    files = export(FeatureStore(args.store), args.format, out, progress=not args.quiet)
    if not args.quiet:
        print(f"{len(files)} file{'s' * (len(files) != 1)}: {escaped(str(out))}")
    return 0


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
