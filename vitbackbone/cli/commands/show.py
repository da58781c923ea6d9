"""The command `show`: pictures of what a backbone sees."""

import argparse

from vitbackbone.cli.model import load
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
