"""Measure the way from a folder of photos to features on the disk.

    python -m benchmarks.folder                       # photo-like JPEGs of 1 to 2 megapixels, made here
    python -m benchmarks.folder FOLDER --workers 1
    python -m benchmarks.folder --count 10000 --ours  # `extract` alone, once

Compares `extract` with a loop over timm and a `DataLoader`, and with the `image-feature-extraction` pipeline of
transformers, on the same photos, pixels and batches. It computes CLS of ViT-S/16 at 224 pixels in float32. The others
read in worker processes; `extract` does so only for a GPU, and else reads between two forwards, as it does by default.
Decoding and the forward share the cores. So the upper limit of both together is
1 / (1 / decoding + 1 / forward), with the rate of each alone.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers import from_timm
from benchmarks.reading import SIZES, made
from benchmarks.timing import DEVICE, ON_GPU, Contestants, machine, markdown, medians, noise
from vitbackbone import Photo, extract, optimize
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


def compare(folder: Path, batch: int, workers: int, seconds: float, ours_alone: bool = False, name: str = MODEL) -> str:
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
        if ours_alone:
            contestants = {"ours": contestants["ours"]}
        rounds = {"least": 1, "most": 1, "warm_up": 0} if ours_alone else {"least": 3, "most": 5}
        t = medians(contestants, seconds, **rounds)
    x = noise(batch, 3, *preprocess.image_size)
    some = [path.read_bytes() for path in paths[:12]]
    stages = {decoding: decoding_rate(backbone, some, decoding) for decoding in ("exact", "fast", "draft")}
    forward = batch / medians({"": partial(fast.forward_prefix, x, [-1])}, 20)[""]
    first, count = next(iter(t.values())), len(paths)
    rows = []
    for who, value in t.items():
        decoding = who.rpartition(" ")[2] if "decoding" in who else "exact"
        bound = 1 / (1 / stages[decoding] + 1 / forward)
        share = f"{count / value / bound:.0%}" if who.startswith("ours") and "as it is" not in who else ""
        rows.append((who, f"{count / value:.1f}", f"{first / value:.2f}", share))
    cores = torch.get_num_threads()
    rates = ", ".join(f"{rate:.0f} ({decoding})" for decoding, rate in stages.items())
    return (
        f"{count} photos, CLS of {name} at 224 pixels, batches of {batch}, {workers} worker(s)"
        f"{'' if ON_GPU else ' of the others'}, {cores} cores; ours by {fast.runtime.route}.\n\n"
        f"{markdown(['', 'images/s', f'against {next(iter(t))}', 'of what the stages allow'], rows)}\n\n"
        f"The stages alone, on all cores: decoding {rates} images/s, forward {forward:.1f} images/s."
    )


def decoding_rate(backbone: object, files: list[bytes], decoding: Decoding) -> float:
    """Return the images a second of all cores, given the rate of one core."""
    preprocess = backbone.preprocess  # type: ignore[attr-defined]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = medians({"": lambda: [preprocess.pixels(Photo(data), decoding=decoding) for data in files]}, 5)[""]
    finally:
        torch.set_num_threads(threads)
    return threads * len(files) / one


def report(batch: int, workers: int, count: int, seconds: float, ours_alone: bool = False, name: str = MODEL) -> str:
    with tempfile.TemporaryDirectory() as folder:
        photos(Path(folder), count)
        return compare(Path(folder), batch, workers, seconds, ours_alone, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="photos to read instead")
    parser.add_argument("--count", type=int, default=96, metavar="N", help="photos to make")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N")
    parser.add_argument("--workers", type=int, default=1, metavar="N")
    parser.add_argument("--seconds", type=float, default=120, help="seconds to measure; at least three rounds run")
    parser.add_argument("--ours", action="store_true", help="measure `extract` alone, once")
    parser.add_argument("--model", default=MODEL, metavar="NAME", help=f"a model of timm (default: {MODEL})")
    args = parser.parse_args()
    print(f"{machine()}, {torch.get_num_threads()} threads\n", flush=True)
    with torch.inference_mode():
        if args.folder:
            print(compare(args.folder, args.batch_size, args.workers, args.seconds, args.ours, args.model))
        else:
            print(report(args.batch_size, args.workers, args.count, args.seconds, args.ours, args.model))


if __name__ == "__main__":
    main()
