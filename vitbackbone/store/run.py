"""The extraction itself: list, plan, and have the shards done that are not."""

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import TypeVar, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vitbackbone.contract import Backbone, Precision, check_device, weights_sha256
from vitbackbone.images import Decoding, Resolution
from vitbackbone.store.layout import DTYPES, TOKENS, Marker, read_marker
from vitbackbone.store.lock import planning, writing
from vitbackbone.store.manifest import Manifest, fingerprint, make_manifest
from vitbackbone.store.plan import Outline, make_plan, read_outline, read_plan, write_plan
from vitbackbone.store.publication import check_folder
from vitbackbone.store.ray_engine import RayOptions, compute_on_ray
from vitbackbone.store.route import Choice, calibration, choose, is_optimised, read_sample
from vitbackbone.store.rows import Inputs
from vitbackbone.store.shard_job import Job, compute, ready
from vitbackbone.store.slices import Part
from vitbackbone.store.source import list_inputs
from vitbackbone.store.store import FeatureStore
from vitbackbone.store.writer import check_manifest, claim, damaged

SHARD_BYTES = 2**28
CHECKERS = 4  # threads that check what is done: as fast as most disks are

T = TypeVar("T")
log = logging.getLogger("vitbackbone")


def extract(
    backbone: Backbone,
    source: str | PathLike[str],
    out: str | PathLike[str],
    *,
    tokens: Sequence[str] = ("cls",),
    layers: Sequence[int] = (-1,),
    batch_size: int = 32,
    shard_size: int | None = None,
    resolution: Resolution | None = None,
    keep_aspect: bool = False,
    decoding: Decoding = "exact",
    max_pixels: int | None = None,
    dtype: str = "float32",
    precision: Precision = "fp32",
    engine: Choice = "auto",
    workers: int = 0,
    device: torch.device | str = "cpu",
    shard: tuple[int, int] = (0, 1),
    retry_failed: bool = False,
    ray: RayOptions | None = None,
    progress: bool = True,
) -> FeatureStore:
    """Writes the features of the images of `source` into the store `out`, and returns it.

    An image that cannot be read, and one whose features are not finite, is a row that says why. Run again, it does what
    is missing, damaged or changed, and nothing else: new images get rows behind those that are there, and the same
    content is computed once. Memory is bounded by about twice one shard.

    `backbone`: also an `nn.Module`. It runs in its own precision, in eval mode on `device`, and is left as it was.
    `source`: a folder, a glob, a CSV or parquet list, or archives; see `list_inputs`.
    `tokens`: any of "cls", "registers", "patches".
    `layers`: block indices, negative from the end, with the final norm if the backbone has one. The last is what the
    store shows first.
    `shard_size`: images to a shard, the unit of work; by default 1000, or fewer so that a shard has about 256 MiB.
    `resolution`, `keep_aspect`: as for `Preprocess`. `decoding`: as for `Preprocess.pixels`; the default changes no
    pixel.
    `max_pixels`: the most pixels that a photo may have, `PIL.Image.MAX_IMAGE_PIXELS` by default. One with more is a
    failed row, which keeps decompression bombs out.
    `dtype`: of the stored features, "float32", "float16" or "bfloat16".
    `precision`, `engine`: of the computation, as for `optimize`; the store says which path was taken, and keeps to it.
    By default it is the fastest that equals float32 to 1e-5; for less than 2000 images torch as it is, as comparing
    takes longer.
    `workers`: processes that read images; 0 reads in this one.
    `shard`: (i, n) does the i-th of n slices, from 0, beside others; the store that comes back is a partial one until
    all are done. `ray`: have the shards done by a Ray cluster.
    `retry_failed`: try those again that could not be read. `progress`: show a bar.

    Raises `ValueError` on a source without images, on values that contradict each other or the backbone, and if `out`
    holds a store of something else, with each difference; `BlockingIOError` while another process writes it,
    `ChildProcessError` if one that reads was killed, `MemoryError` if memory does not suffice for one image.
    """
    if not isinstance(backbone, nn.Module):
        raise ValueError(f"backbone is a {type(backbone).__name__}; want one that is an nn.Module")
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("shard_size", shard_size, 1),
        ("workers", workers, 0),
        ("max_pixels", max_pixels, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if ray is None:
        check_device(device)
    elif is_optimised(backbone):
        raise ValueError("an optimised backbone is of this process; give Ray the plain one, and a precision and engine")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; want one of {', '.join(DTYPES)}")
    if decoding not in get_args(Decoding):
        raise ValueError(f"decoding={decoding!r}; want one of {', '.join(get_args(Decoding))}")
    part = Part(*shard)
    size = backbone.preprocess.view((1, 1), resolution, keep_aspect).size  # refuses an impossible resolution
    kinds = _check_tokens(tokens, backbone)
    indices = backbone.spec.indices(layers)
    if len(set(indices)) < len(indices):
        raise ValueError(f"layers={list(layers)} asks for a layer twice")
    shard_size = shard_size or _default_shard_size(backbone, kinds, indices, size, DTYPES[dtype])
    directory = Path(out)
    check_folder(directory)
    inputs = list_inputs(source)
    for note in inputs.notes:
        log.warning("%s", note)
    sample: list[Tensor] = []
    if precision != "fp32":
        sample = read_sample(directory, inputs, shard_size, backbone.preprocess, resolution, keep_aspect, max_pixels)
    runtime = choose(backbone, precision, engine, directory, len(inputs), sample, device)
    manifest = make_manifest(
        backbone,
        weights_sha256(backbone),
        tokens=kinds,
        layers=indices,
        shard_size=shard_size,
        resolution=resolution,
        keep_aspect=keep_aspect,
        decoding=decoding,
        dtype=dtype,
        runtime=runtime,
        calibration=calibration(runtime, sample),
    )
    check_manifest(directory, manifest)
    directory.mkdir(parents=True, exist_ok=True)
    with writing(directory, part):
        with planning(directory):
            outline = _plan(directory, manifest, inputs, retry_failed, progress)
        job = Job(directory, inputs.root, manifest, batch_size, workers, str(device), sample, max_pixels)
        _run(job, backbone, outline, part, retry_failed, ray, progress)
    return FeatureStore(directory, partial=not part.whole)


def _plan(directory: Path, manifest: Manifest, inputs: Inputs, reread: bool, progress: bool) -> Outline:
    """Publishes what is to be done, and what that changes says the log."""
    check_manifest(directory, manifest)  # again, as others may have been first
    claim(directory, manifest)
    before = read_plan(directory, manifest["shard_size"])

    def watch(digests: Iterator[bytes], total: int) -> Iterator[bytes]:
        return iter(_bar(digests, total, "reading what is new", progress))

    plan, change = make_plan(inputs, before, watch, reread)
    write_plan(directory, plan, before)
    if len(before) and change.added:
        log.info("%s: %d new images, behind the %d that it has", directory, change.added, len(before))
    if change.changed:
        log.warning("%s: %d images have another content now; their shards are done again", directory, change.changed)
    if change.gone:
        log.warning("%s: %d of its images are gone from the source; it keeps their rows", directory, change.gone)
    return read_outline(directory)


def _run(
    job: Job,
    backbone: Backbone,
    outline: Outline,
    part: Part,
    retry_failed: bool,
    ray: RayOptions | None,
    progress: bool,
) -> None:
    """Has those shards of `part` done that are not."""
    numbers = [number for number in range(len(outline.shards)) if number in part]
    expected = fingerprint(job.manifest)

    def done(number: int) -> Marker | None:
        marker = read_marker(job.directory, number)
        if marker is None or not marker.fits(expected, outline.shards[number], outline.rows[number]):
            return None
        return None if (retry_failed and marker.failed) or damaged(job.directory, number, marker) else marker

    with ThreadPoolExecutor(CHECKERS) as threads:
        markers = list(_bar(threads.map(done, numbers), len(numbers), "checking what is done", progress))
    finished = [marker for marker in markers if marker is not None]
    todo = [number for number, marker in zip(numbers, markers, strict=True) if marker is None]
    if not todo:
        return
    failed, before = sum(marker.failed for marker in finished), sum(marker.rows for marker in finished)
    total = before + sum(outline.rows[number] for number in todo)
    with (
        ready(job, backbone) if ray is None else nullcontext(backbone) as fast,
        tqdm(total=total, initial=before, unit="img", disable=not progress, mininterval=_interval()) as bar,
    ):
        for tally in compute(job, fast, todo) if ray is None else compute_on_ray(job, backbone, todo, ray):
            failed += tally.failed
            bar.set_postfix(failed=failed, refresh=False)
            bar.update(tally.images)


def _bar(items: Iterable[T], total: int, what: str, progress: bool) -> Iterable[T]:
    """Shown where it takes longer than a moment."""
    return tqdm(items, what, total, leave=False, disable=not progress, mininterval=_interval(), delay=2)


def _interval() -> float:
    """Where nobody watches, a log of it all gets a line now and then."""
    return 0.1 if sys.stderr.isatty() else 10


def _default_shard_size(
    backbone: Backbone, kinds: Sequence[str], layers: Sequence[int], size: tuple[int, int], dtype: torch.dtype
) -> int:
    """From what an image of (H, W) pixels takes. One whose aspect is kept takes more, twice that at 2:1."""
    spec = backbone.spec
    values = 0
    for dim, stride in ((spec.dims[layer], spec.strides[layer]) for layer in layers):
        patches = -(-size[0] // stride) * -(-size[1] // stride)
        tokens = {"cls": 1, "registers": spec.num_registers, "patches": patches}
        values += sum(tokens[kind] for kind in kinds) * dim
    return min(1000, max(1, SHARD_BYTES // (values * dtype.itemsize)))


def _check_tokens(tokens: Sequence[str], backbone: Backbone) -> list[str]:
    """The kinds of tokens, in the order of `TOKENS`. Raises `ValueError` on one that there is not."""
    wrong = [kind for kind in tokens if kind not in TOKENS]
    if wrong or not tokens:
        raise ValueError(f"tokens={tokens!r}; want at least one of {', '.join(TOKENS)}")
    spec = backbone.spec
    if "cls" in tokens and not spec.has_cls:
        raise ValueError(f"{spec.name} has no CLS token; ask for tokens=('patches',)")
    if "registers" in tokens and not spec.num_registers:
        raise ValueError(f"{spec.name} has no register tokens; leave 'registers' out of tokens")
    return [kind for kind in TOKENS if kind in tokens]
