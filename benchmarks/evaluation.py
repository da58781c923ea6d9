"""Measure the speed of `vitbackbone evaluate`: nearest neighbours in blocks, and 52 linear heads against one.

python -m benchmarks.evaluation knn --share 0.1     # queries and training vectors: a tenth of ImageNet's
python -m benchmarks.evaluation heads --batch 32    # a step of DINOv2's linear protocol on a ViT-S/16 of random weights
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitbackbone import ViT, ViTConfig
from vitbackbone.evaluation.linear_heads import LinearHeads, head_inputs
from vitbackbone.evaluation.metrics.votes import ROWS, nearest, unit, votes
from vitbackbone.evaluation.protocols.linear import RATES
from vitbackbone.evaluation.vectors import VectorFeatures

QUERIES, TRAINING, WIDTH, CLASSES, KS = 50_000, 1_281_167, 768, 1000, (10, 20, 100, 200)


def knn(share: float) -> None:
    """Vote for a share of the queries among a share of the training vectors, which are memory-mapped."""
    queries, training = int(QUERIES * share), int(TRAINING * share)
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, training)
    with tempfile.TemporaryDirectory() as folder:
        stored = np.lib.format.open_memmap(Path(folder) / "train.npy", "w+", np.float32, (training, WIDTH))
        for start in range(0, training, ROWS):
            stored[start : start + ROWS] = random.standard_normal(stored[start : start + ROWS].shape, np.float32)
        stored.flush()
        before, start_time = _peak(), time.perf_counter()
        for start in range(0, queries, ROWS):
            block = unit(torch.from_numpy(random.standard_normal((min(ROWS, queries - start), WIDTH), np.float32)))
            top, rows = nearest(block, _blocks(stored), max(KS))
            for k in KS:
                votes(top[:, :k].numpy(), labels[rows[:, :k].numpy()], CLASSES, 0.07)
        seconds = time.perf_counter() - start_time
        products = 2e-9 * queries * training * WIDTH / seconds
        print(f"{queries:,} x {WIDTH} against {training:,} x {WIDTH}: {seconds:.0f} s, {products:.0f} GFLOP/s")
        print(f"peak memory: {before:.0f} MB before, {_peak():.0f} MB after; {torch.get_num_threads()} threads")


def _blocks(stored: np.ndarray) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(stored), ROWS):
        yield start, unit(torch.from_numpy(np.array(stored[start : start + ROWS])))


def heads(batch: int, steps: int = 4) -> None:
    """Compare a training step of all 52 heads with one of a single head, the forward of the backbone included."""
    config = ViTConfig(image_size=(224, 224), patch_size=16, dim=384, depth=12, num_heads=6, mlp_dim=1536)
    backbone = ViT(config).eval()
    images, labels = torch.randn(batch, 3, 224, 224), torch.randint(0, CLASSES, (batch,))
    seconds = {}
    for name, blocks, means, rates in (("1 head", (1,), (False,), (0.01,)), ("52 heads", (1, 4), (False, True), RATES)):
        features = VectorFeatures(max(blocks), any(means))
        inputs = head_inputs(blocks, means, features.widths(backbone.spec), 384)
        trained = LinearHeads(inputs, rates, CLASSES, steps=100, momentum=0.9)
        times = []
        for number in range(steps):
            start = time.perf_counter()
            trained.step(features.read(backbone, images), labels, number)
            times.append(time.perf_counter() - start)
        seconds[name] = min(times)
        print(f"{name}: {seconds[name]:.2f} s for a step of {batch} images")
    print(f"52 heads cost {seconds['52 heads'] / seconds['1 head']:.2f} times one")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["knn", "heads"])
    parser.add_argument("--share", type=float, default=0.1, help="share of ImageNet's queries and training vectors")
    parser.add_argument("--batch", type=int, default=32, help="images of a step")
    args = parser.parse_args()
    knn(args.share) if args.what == "knn" else heads(args.batch)
