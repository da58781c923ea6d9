"""The command `check`: a backbone against the library that its weights come from."""

import argparse
from dataclasses import asdict

from vitbackbone.cli.output import print_json
from vitbackbone.cli.text import escaped


def run_check(args: argparse.Namespace) -> int:
    from vitbackbone.checkpoints import WeightsUnavailable
    from vitbackbone.inspection import check

    try:
        result = check(args.name, args.weights, random=args.random, resolution=args.resolution)
    except WeightsUnavailable as error:
        raise WeightsUnavailable(
            f"the published weights of {escaped(args.name)} could not be downloaded; give --weights FILE, or --random "
            "to compare on random weights without a network"
        ) from error
    if args.json:
        print_json({**asdict(result), "largest": result.largest, "equal": result.equal})
    else:
        height, width = result.image_size
        print(f"{escaped(result.name)} against {result.upstream}, {escaped(result.weights)}")
        print(f"{result.photos} photos at {height} x {width} pixels; max |a - b| / max |b|")
        for part, difference in result.errors.items():
            print(f"  {part:<10} {difference:.1e}")
        for part, why in result.left_out.items():
            print(f"  {part:<10} not compared: {why}")
        print(result.verdict)
    return 0 if result.equal else 1
