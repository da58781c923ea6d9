"""Embed a folder of photos with Spark, and write a parquet table of paths and features.

    python examples/embed_with_spark.py PHOTOS OUT --model vit_small_patch14_dinov2.lvd142m

Photos that cannot be read get a row of NaN.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from pyspark.sql import SparkSession

from vitbackbone import embed_batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("out", type=Path, help="folder for the parquet table")
    parser.add_argument("--model", default="nano", help="a backbone, as for load_backbone (default: nano)")
    parser.add_argument("--device", default="cpu", help="where to compute, such as cpu or cuda (default: %(default)s)")
    parser.add_argument("--master", default="local[1]", help="address of the Spark cluster (default: %(default)s)")
    args = parser.parse_args()
    model, device = args.model, args.device

    def embed(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            features = embed_batch(list(batch["content"]), model, device=device, errors="nan")
            yield pd.DataFrame({"path": batch["path"], "features": list(features)})

    spark = SparkSession.builder.master(args.master).appName("vitbackbone").getOrCreate()
    files = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(str(args.photos))
    files.mapInPandas(embed, "path string, features array<float>").write.mode("overwrite").parquet(str(args.out))
    spark.stop()


if __name__ == "__main__":
    main()
