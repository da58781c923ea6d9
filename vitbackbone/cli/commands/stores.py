"""The commands `verify`, `log`, `prune` and `export`: the upkeep of a feature store."""

import argparse

from vitbackbone.cli.output import print_json
from vitbackbone.cli.places import folder_beside
from vitbackbone.cli.text import escaped, printable


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
        rows = f", rows of images that are gone: {done.rows}" if args.gone else ""
        files = f"files: {done.objects} ({done.bytes:,} bytes)"
        print(f"{escaped(args.store)}: removed snapshots: {done.snapshots}, {files}{rows}")
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
