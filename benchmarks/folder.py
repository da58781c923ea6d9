"""Measure the way from a folder of photos to features on the disk.

    python -m benchmarks.folder  # photo-like JPEGs of 1 to 2 megapixels, made here
    python -m benchmarks.folder FOLDER --workers 1

Compares `extract` with a loop over timm and a `DataLoader`, and with the `image-feature-extraction` pipeline of
transformers, on the same photos, pixels and batches. It computes CLS of ViT-S/16 at 224 pixels in float32. The others
read in worker processes; `extract` does so only for a GPU, and else reads between two forwards, as it does by default.
Decoding and the forward share the cores. So the upper limit of both together is
1 / (1 / decoding + 1 / forward), with the rate of each alone. These are measured before and after,
because the speed of a machine drifts. `benchmarks.whole_folder` measures thousands of photos.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import transformers
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers import from_timm
from benchmarks.reading import SIZES, made
from benchmarks.timing import DEVICE, ON_GPU, Contestants, machine, markdown, medians, noise
from vitbackbone import Photo, Preprocess, extract, optimize
from vitbackbone.images import Decoding

MODEL = "vit_small_patch16_224.augreg_in21k"


class Photos(Dataset):
    """Run the loop that a timm user writes."""

    def __init__(self, paths: list[Path], transform: Callable) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        from PIL import Image

        with Image.open(self.paths[i]) as image:
            return self.transform(image.convert("RGB"))


def photos(folder: Path, count: int) -> None:
    """Write six pictures under many names. Each file ends with its number, so that no two are equal."""
    kinds = [made(*size, seed) for seed, size in enumerate(SIZES)]
    for i in range(count):
        (folder / f"{i:05d}.jpg").write_bytes(kinds[i % len(kinds)] + i.to_bytes(4, "big"))


def loop(model: torch.nn.Module, transform: Callable, paths: list[Path], out: Path, batch: int, workers: int) -> None:
    loader = DataLoader(Photos(paths, transform), batch_size=batch, num_workers=workers, pin_memory=ON_GPU)
    found = [model.forward_features(x.to(DEVICE, non_blocking=True))[:, 0].cpu().numpy() for x in loader]
    np.save(out, np.concatenate(found))


def piped(pipeline: Callable, paths: list[Path], out: Path, batch: int, workers: int) -> None:
    every = pipeline([str(path) for path in paths], batch_size=batch, num_workers=workers)
    np.save(out, np.array([np.asarray(tokens)[0, 0] for tokens in every]))


def compare(folder: Path, batch: int, workers: int, seconds: float, name: str = MODEL) -> str:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    theirs, backbone = from_timm(name)
    fast = optimize(backbone)
    preprocess = backbone.preprocess
    transform = create_transform(
        (3, *preprocess.image_size),
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
        crop_pct=preprocess.crop_pct,
    )
    pipeline = transformers.pipeline(
        "image-feature-extraction",
        model=transformers.ViTModel(
            transformers.ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536),
            add_pooling_layer=False,
        ).eval(),
        image_processor=transformers.ViTImageProcessor(),
        device=DEVICE,
    )
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)

        def ours(model: object, decoding: Decoding) -> None:
            shutil.rmtree(out / "store", ignore_errors=True)
            extract(
                model,
                folder,
                out / "store",
                batch_size=batch,
                workers=workers if ON_GPU else 0,
                decoding=decoding,
                device=DEVICE,
                progress=False,
            )

        contestants: Contestants = {
            "timm and a DataLoader": partial(loop, theirs.model, transform, paths, out / "timm.npy", batch, workers),
            "transformers' pipeline": partial(piped, pipeline, paths, out / "hf.npy", batch, workers),
            "ours, torch as it is": partial(ours, backbone, "exact"),
            "ours": partial(ours, fast, "exact"),
            "ours, decoding fast": partial(ours, fast, "fast"),
            "ours, decoding draft": partial(ours, fast, "draft"),
        }
        x = noise(batch, 3, *preprocess.image_size)
        some = [path.read_bytes() for path in paths[:12]]
        alone = partial(stages, preprocess, partial(fast.forward_prefix, x, [-1]), batch, some)
        before = alone()
        t = medians(contestants, seconds, least=3, most=5)
    rates = {stage: 2 / (1 / rate + 1 / before[stage]) for stage, rate in alone().items()}
    first, count = next(iter(t.values())), len(paths)
    rows = []
    for who, value in t.items():
        decoding = who.rpartition(" ")[2] if "decoding" in who else "exact"
        bound = 1 / (1 / rates[decoding] + 1 / rates["forward"])
        share = f"{count / value / bound:.0%}" if who.startswith("ours") and "as it is" not in who else ""
        rows.append((who, f"{count / value:.1f}", f"{first / value:.2f}", share))
    cores = torch.get_num_threads()
    return (
        f"{count} photos, CLS of {name} at 224 pixels, batches of {batch}, {workers} worker(s)"
        f"{'' if ON_GPU else ' of the others'}, {cores} cores; ours by {fast.runtime.route}.\n\n"
        f"{markdown(['', 'images/s', f'against {next(iter(t))}', 'of what the stages allow'], rows)}\n\n"
        f"The stages alone, on all cores, in images/s: "
        f"{', '.join(f'{stage} {rate:.1f} ({before[stage]:.1f} before)' for stage, rate in rates.items())}."
    )


def stages(
    preprocess: Preprocess, forward: Callable[[], object], batch: int, files: list[bytes]
) -> dict[Decoding | Literal["forward"], float]:
    """Return the images a second of each way of decoding, and of the forward."""
    ways: tuple[Decoding, ...] = ("exact", "fast", "draft")
    rates = {decoding: decoding_rate(preprocess, files, decoding) for decoding in ways}
    return {**rates, "forward": batch / medians({"": forward}, 20)[""]}


def decoding_rate(preprocess: Preprocess, files: list[bytes], decoding: Decoding) -> float:
    """Return the images a second of as many threads as there are cores."""
    threads = torch.get_num_threads()
    some = files * threads
    with ThreadPoolExecutor(threads) as pool:

        def decode() -> None:
            list(pool.map(lambda data: preprocess.pixels(Photo(data), decoding=decoding), some))

        return len(some) / medians({"": decode}, 5)[""]


def report(batch: int, workers: int, count: int, seconds: float, name: str = MODEL) -> str:
    with tempfile.TemporaryDirectory() as folder:
        photos(Path(folder), count)
        return compare(Path(folder), batch, workers, seconds, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="photos to read instead")
    parser.add_argument("--count", type=int, default=96, metavar="N", help="photos to make")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N")
    parser.add_argument("--workers", type=int, default=1, metavar="N")
    parser.add_argument("--seconds", type=float, default=120, help="seconds to measure; at least three rounds run")
    parser.add_argument("--model", default=MODEL, metavar="NAME", help=f"a model of timm (default: {MODEL})")
    args = parser.parse_args()
    print(f"{machine()}, {torch.get_num_threads()} threads\n", flush=True)
    with torch.inference_mode():
        if args.folder:
            print(compare(args.folder, args.batch_size, args.workers, args.seconds, args.model))
        else:
            print(report(args.batch_size, args.workers, args.count, args.seconds, args.model))


if __name__ == "__main__":
    main()
