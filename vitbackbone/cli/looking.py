"""The commands `show`, `models`, `info` and `demo`."""

import argparse
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path

from vitbackbone.cli.model import load
from vitbackbone.cli.output import print_json
from vitbackbone.cli.text import escaped


def show_pictures(args: argparse.Namespace) -> int:
    from vitbackbone.images import ImageError
    from vitbackbone.inspection import show

    options = {"resolution": args.resolution, "layer": args.layer, "max_pixels": args.max_pixels}
    try:
        paths = show(load(args), args.image, args.out, **options)
    except ImageError as error:
        raise ValueError(f"{escaped(args.image)}: {error}") from error
    for path in paths:
        print(escaped(str(path)))
    return 0


def list_models(args: argparse.Namespace) -> int:
    from vitbackbone.checkpoints import list_backbones
    from vitbackbone.inspection import models_rows, models_table

    names = list_backbones(args.pattern)
    if not names:
        raise ValueError(f"no name matches {args.pattern!r}; `vitbackbone models` lists them all")
    if args.json:
        print_json(models_rows(names))
    else:
        print(models_table(names))
    return 0


def print_info(args: argparse.Namespace) -> int:
    from vitbackbone.checkpoints import find_entry
    from vitbackbone.inspection import info, info_record, trace, trace_rows

    entry = find_entry(args.name, args.tower)
    traced = entry.config, args.resolution or entry.preprocess.image_size, entry.num_classes or None, entry.format
    if args.json and args.trace:
        print_json([dict(zip(("step", "tensor", "note"), row, strict=True)) for row in trace_rows(*traced)])
    elif args.json:
        print_json(info_record(args.name, entry, args.resolution))
    else:
        print(trace(*traced) if args.trace else info(escaped(args.name), entry, args.resolution))
    return 0


def run_demo(args: argparse.Namespace) -> int:
    from heads.measures import report
    from heads.probes import LinearProbe
    from vitbackbone.cli.demo import run

    with redirect_stdout(StringIO()) if args.quiet else nullcontext():
        return run(Path(args.out), lambda X, y, X_test, y_test: report(LinearProbe().fit(X, y), X_test, y_test))
