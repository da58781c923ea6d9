"""Embed a folder of photos with Daft, and write a parquet table of paths and features.

    python examples/embed_with_daft.py PHOTOS OUT --model vit_small_patch14_dinov2.lvd142m --gpus 1

Photos that cannot be read get a row of NaN.
"""

import argparse
from pathlib import Path

import daft
import numpy as np
from daft import DataType, Series

from vitbackbone import embed_batch, load_backbone


def embedder(model: str, width: int, gpus: int) -> type:
    """Return a class whose instances each hold a model, for features of `width` numbers."""

    @daft.cls(gpus=gpus)
    class Embed:
        def __init__(self, device: str) -> None:
            self.device = device

        @daft.method.batch(return_dtype=DataType.embedding(DataType.float32(), width))
        def __call__(self, files: Series) -> list[np.ndarray]:
            return list(embed_batch(files.to_pylist(), model, device=self.device, errors="nan"))

    return Embed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("out", type=Path, help="folder for the parquet table")
    parser.add_argument("--model", default="nano", help="a backbone, as for load_backbone (default: nano)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs reserved for each worker (default: %(default)s)")
    args = parser.parse_args()
    embed = embedder(args.model, load_backbone(args.model).spec.dim, args.gpus)("cuda" if args.gpus else "cpu")
    files = daft.from_glob_path(f"{args.photos}/**")
    table = files.with_column("features", embed(files["path"].download(on_error="null")))
    table.select("path", "features").write_parquet(str(args.out))


if __name__ == "__main__":
    main()
