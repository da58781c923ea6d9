"""Measure the reading of images, from the bytes of a file to pixels, in one process and thread, in turn, by medians.

    python -m benchmarks.reading                                    # photo-like JPEGs of 1 to 2 megapixels, made here
    python -m benchmarks.reading FOLDER --resolution 518 --rounds 3

A ratio above 1 is faster than Pillow. Ours is `Preprocess.pixels` with each `decoding`. It stops at 8 bits, because the
device normalises. Differences are to Pillow, in levels of 255.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from tqdm import tqdm

from benchmarks.timing import markdown
from vitbackbone import Photo, Preprocess, load_image

SIZES = [(900, 1200), (1024, 1365), (1365, 1024), (1000, 1500), (1080, 1920), (1200, 1600)]  # (H, W) in pixels

Way = Callable[[bytes], Tensor]


def made(height: int, width: int, seed: int) -> bytes:
    """Return a JPEG with detail at every scale, like a photo: noise of all scales, the finest faintest."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128.0)
    for step in (1, 4, 16, 64, 256):
        noise = rng.normal(128, 6 * step**0.25, (height // step + 2, width // step + 2, 3)).clip(0, 255)
        scaled = Image.fromarray(noise.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        pixels += np.asarray(scaled) - 128.0
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def ways(preprocess: Preprocess) -> dict[str, Way]:
    theirs = create_transform(
        (3, *preprocess.image_size),
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
        crop_pct=preprocess.crop_pct,
    )
    return {
        "Pillow": lambda data: preprocess(Image.open(io.BytesIO(data))),
        "timm": lambda data: theirs(load_image(Image.open(io.BytesIO(data)))),
        "ours, exact": lambda data: preprocess.pixels(Photo(data)),
        "ours, fast": lambda data: preprocess.pixels(Photo(data), decoding="fast"),
        "ours, draft": lambda data: preprocess.pixels(Photo(data), decoding="draft"),
    }


def seconds(contestants: dict[str, Way], files: Sequence[bytes], rounds: int) -> dict[str, float]:
    """Return the median seconds of each contestant for one file, in turn, after one file of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run(files[0])
    for data in tqdm(list(files) * rounds, leave=False):
        for name, run in contestants.items():
            began = time.perf_counter()
            run(data)
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in times.items()}


def levels(preprocess: Preprocess, found: Tensor) -> Tensor:
    """Return pixels in levels of 255, from 8 bits or from a normalised tensor."""
    if found.dtype == torch.uint8:
        return found.float()
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (preprocess.mean, preprocess.std))
    return 255 * (found * std + mean)


def report(files: Sequence[bytes], resolution: int, rounds: int) -> str:
    """Return the table of one thread."""
    preprocess = Preprocess((resolution, resolution))
    contestants = ways(preprocess)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        t = seconds(contestants, files, rounds)
    finally:
        torch.set_num_threads(threads)
    rows = []
    for name, run in contestants.items():
        apart = [
            (levels(preprocess, run(data)) - levels(preprocess, contestants["Pillow"](data))).abs() for data in files
        ]
        largest, mean = max(each.max().item() for each in apart), statistics.mean(each.mean().item() for each in apart)
        rows.append((name, f"{1 / t[name]:.0f}", f"{t['Pillow'] / t[name]:.2f}", f"{largest:.0f}", f"{mean:.3f}"))
    megapixels = statistics.mean(np.prod(Photo(data).size) for data in files) / 1e6
    return (
        f"{len(files)} JPEGs of {megapixels:.1f} MP and {statistics.mean(map(len, files)) / 1000:.0f} kB on average, "
        f"to {resolution} pixels; one thread, torchvision {torchvision.__version__}, Pillow {PIL.__version__}.\n\n"
        + markdown(["", "images/s", "against Pillow", "largest difference", "mean"], rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="JPEGs to read instead")
    parser.add_argument("--resolution", type=int, default=224, metavar="PIXELS")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often each file is read")
    args = parser.parse_args()
    if args.folder is None:
        files = [made(*size, seed) for seed, size in enumerate(SIZES)]
    else:
        files = [
            path.read_bytes() for path in sorted(args.folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")
        ]
        if not files:
            parser.error(f"{args.folder} has no .jpg or .jpeg in it")
    print(report(files, args.resolution, args.rounds))


if __name__ == "__main__":
    main()
