"""`show`, `models`, `info` and `demo`: what there is, and what it sees."""

import argparse
from pathlib import Path

from vitbackbone.cli.model import load


def show_pictures(args: argparse.Namespace) -> int:
    from vitbackbone.view import show

    options = {"resolution": args.resolution, "layer": args.layer, "max_pixels": args.max_pixels}
    for path in show(load(args), args.image, args.out, **options):
        print(path)
    return 0


def list_models(args: argparse.Namespace) -> int:
    from vitbackbone.describe import models_table
    from vitbackbone.load import list_backbones

    names = list_backbones(args.pattern)
    if not names:
        raise ValueError(f"no name matches {args.pattern!r}; `vitbackbone models` lists them all")
    print(models_table(names))
    return 0


def print_info(args: argparse.Namespace) -> int:
    from vitbackbone.describe import info, trace
    from vitbackbone.load import find_entry

    entry = find_entry(args.name)
    if args.trace:
        size = args.resolution or entry.preprocess.image_size
        print(trace(entry.config, size, entry.num_classes or None, entry.format))
    else:
        print(info(args.name, entry, args.resolution))
    return 0


def run_demo(args: argparse.Namespace) -> int:
    from heads.probes import LinearProbe, report
    from vitbackbone.demo import run

    return run(Path(args.out), lambda X, y, X_test, y_test: report(LinearProbe().fit(X, y), X_test, y_test))
