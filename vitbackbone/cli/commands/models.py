"""The commands `models` and `info`: the backbones known by name, and the costs of one."""

import argparse

from vitbackbone.cli.output import print_json
from vitbackbone.cli.text import escaped


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
