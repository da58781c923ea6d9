"""Embed a folder of photos with Ray Data, and write a parquet table of paths and features.

    python examples/embed_with_ray.py PHOTOS OUT --model vit_small_patch14_dinov2.lvd142m --gpus 1

For a store that resumes and checks itself, use `vitbackbone extract --cluster ray`. This script is for a pipeline
that continues in Ray. Photos that cannot be read get a row of NaN.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import ray

from vitbackbone import embed_batch


class Embed:
    """One worker with its model."""

    def __init__(self, model: str, device: str) -> None:
        self.options = {"model": model, "device": device}

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        features = embed_batch(list(batch["bytes"]), **self.options, errors="nan")
        return {"path": batch["path"], "features": features}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("out", type=Path, help="folder for the parquet table")
    parser.add_argument("--model", default="nano", help="a backbone, as for load_backbone (default: nano)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs reserved for each worker (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="number of workers (default: 1)")
    parser.add_argument("--batch-size", type=int, default=32, help="images in one forward pass (default: 32)")
    args = parser.parse_args()
    files = ray.data.read_binary_files(str(args.photos.absolute()), include_paths=True)
    found = files.map_batches(
        Embed,
        fn_constructor_kwargs={"model": args.model, "device": "cuda" if args.gpus else "cpu"},
        compute=ray.data.ActorPoolStrategy(size=args.workers),
        num_gpus=args.gpus,
        batch_size=args.batch_size,
    )
    found.write_parquet(str(args.out.absolute()))


if __name__ == "__main__":
    main()
