"""The extraction: list the images, plan the shards, and compute those that are not complete."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import TypeVar, get_args

import torch
from torch import Tensor, nn

from vitbackbone.contract import Backbone, Precision, check_device, weights_sha256
from vitbackbone.files import progress_bar
from vitbackbone.images import Decoding, Resolution
from vitbackbone.store.cluster import RayCluster, compute_on_cluster
from vitbackbone.store.layout import DTYPES, TOKENS, Marker, read_marker
from vitbackbone.store.lock import planning, writing
from vitbackbone.store.manifest import Manifest, make_manifest, manifest_sha256
from vitbackbone.store.plan import Outline, make_plan, read_outline, read_plan, write_plan
from vitbackbone.store.publication import check_folder
from vitbackbone.store.route import Choice, calibration, choose, is_optimised, read_sample
from vitbackbone.store.rows import Inputs
from vitbackbone.store.shard_job import Job, compute, ready
from vitbackbone.store.slices import Slice
from vitbackbone.store.source import list_inputs
from vitbackbone.store.store import FeatureStore
from vitbackbone.store.writer import broken_files, check_manifest, claim

SHARD_BYTES = 2**28  # largest default shard
CHECKERS = 4  # threads that read complete shards; more are no faster on most disks

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
    slice: tuple[int, int] = (0, 1),
    cluster: RayCluster | None = None,
    retry_failed: bool = False,
    progress: bool = True,
) -> FeatureStore:
    """Write the features of the images of `source` into the store `out`, and return the store.

    An image that cannot be read is a row with the reason. The same holds for an image whose features are not finite.
    A second run computes only what is missing, damaged, new or changed. New images get rows behind the existing ones.
    Images with the same content are computed once. The run needs about twice the memory of one shard.

    `backbone`: must be an `nn.Module`. It runs on `device` in eval mode and in its own dtype, and is left unchanged.
    `source`: a folder, a glob, a CSV or parquet list, or archives; see `list_inputs`.
    `tokens`: any of "cls", "registers", "patches".
    `layers`: block indices, negative from the end. The backbone's final norm is applied if it has one. The store
    shows the last of these layers by default.
    `shard_size`: images of a shard, the unit of work. The default is 1000, or fewer so that a shard has about 256 MiB.
    `resolution`, `keep_aspect`: as for `Preprocess`. `decoding`: as for `Preprocess.pixels`; the default is exact.
    `max_pixels`: most pixels of a photo, by default `PIL.Image.MAX_IMAGE_PIXELS`. A larger photo is a failed row, so
    that a decompression bomb is not decoded.
    `dtype`: dtype of the stored features, "float32", "float16" or "bfloat16".
    `precision`, `engine`: as for `optimize`. The manifest records the route, and later runs take the same route. With
    the defaults, a run of 2000 images or more takes the fastest route that equals float32 to 1e-5. A smaller run takes
    plain torch, because comparing the routes takes longer than it saves.
    `workers`: processes that read images; 0 reads in this process.
    `slice`: (i, n) computes slice i of n, counted from 0, while other runs compute the others. The returned store is
    partial until all slices are complete.
    `cluster`: compute the shards on a Ray cluster.
    `retry_failed`: read the failed images again. `progress`: show a progress bar.

    Raises `ValueError` if the source has no images, if an argument does not fit the backbone or another argument, or
    if `out` is a store made from something else; the error lists each difference. Raises `BlockingIOError` while
    another process writes the store, `ChildProcessError` if a worker was killed, and `MemoryError` if memory does not
    suffice for a single image.
    """
    if not isinstance(backbone, nn.Module):
        raise ValueError(f"backbone is a {type(backbone).__name__}; want an nn.Module")
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("shard_size", shard_size, 1),
        ("workers", workers, 0),
        ("max_pixels", max_pixels, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if cluster is None:
        check_device(device)
    elif is_optimised(backbone):
        raise ValueError(
            "an optimised backbone cannot be sent to a cluster; give the plain backbone, a precision and an engine"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; want one of {', '.join(DTYPES)}")
    if decoding not in get_args(Decoding):
        raise ValueError(f"decoding={decoding!r}; want one of {', '.join(get_args(Decoding))}")
    mine = Slice(*slice)
    size = backbone.preprocess.view((1, 1), resolution, keep_aspect).size  # refuses an impossible resolution
    kinds = _check_tokens(tokens, backbone)
    indices = backbone.spec.indices(layers)
    if len(set(indices)) < len(indices):
        raise ValueError(f"layers={list(layers)} names a layer twice; want each once")
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
    with writing(directory, mine):
        with planning(directory):
            outline = _plan(directory, manifest, inputs, retry_failed, progress)
        job = Job(directory, inputs.root, manifest, batch_size, workers, str(device), sample, max_pixels)
        _run(job, backbone, outline, mine, retry_failed, cluster, progress)
    return FeatureStore(directory, partial=not mine.whole)


def _plan(directory: Path, manifest: Manifest, inputs: Inputs, reread: bool, progress: bool) -> Outline:
    """Publish the plan, and log what it changes."""
    check_manifest(directory, manifest)  # again, because another run may have written it since
    claim(directory, manifest)
    before = read_plan(directory, manifest["shard_size"])

    def watch(digests: Iterator[bytes], total: int) -> Iterator[bytes]:
        return iter(progress_bar(digests, "reading new images", progress, passing=True, total=total))

    plan, change = make_plan(inputs, before, watch, reread)
    write_plan(directory, plan, before)
    if len(before) and change.added:
        log.info("%s: %d new images, added behind its %d", directory, change.added, len(before))
    if change.changed:
        log.warning("%s: %d images have changed; their shards are computed again", directory, change.changed)
    if change.gone:
        log.warning("%s: %d of its images are no longer in the source; their rows stay", directory, change.gone)
    return read_outline(directory)


def _run(
    job: Job,
    backbone: Backbone,
    outline: Outline,
    mine: Slice,
    retry_failed: bool,
    cluster: RayCluster | None,
    progress: bool,
) -> None:
    """Compute the shards of a slice that are not complete."""
    numbers = [number for number in range(len(outline.shards)) if number in mine]
    expected = manifest_sha256(job.manifest)

    def done(number: int) -> Marker | None:
        marker = read_marker(job.directory, number)
        if marker is None or not marker.fits(expected, outline.shards[number], outline.rows[number]):
            return None
        return None if (retry_failed and marker.failed) or broken_files(job.directory, number, marker) else marker

    with ThreadPoolExecutor(CHECKERS) as threads:
        checked = threads.map(done, numbers)
        bar = progress_bar(checked, "checking complete shards", progress, passing=True, total=len(numbers))
        markers = list(bar)
    finished = [marker for marker in markers if marker is not None]
    todo = [number for number, marker in zip(numbers, markers, strict=True) if marker is None]
    if not todo:
        return
    failed, before = sum(marker.failed for marker in finished), sum(marker.rows for marker in finished)
    total = before + sum(outline.rows[number] for number in todo)
    with (
        ready(job, backbone) if cluster is None else nullcontext(backbone) as routed,
        progress_bar(shown=progress, total=total, initial=before, unit="img") as bar,
    ):
        tallies = compute(job, routed, todo) if cluster is None else compute_on_cluster(job, backbone, todo, cluster)
        for tally in tallies:
            failed += tally.failed
            bar.set_postfix(failed=failed, refresh=False)
            bar.update(tally.images)


def _default_shard_size(
    backbone: Backbone, kinds: Sequence[str], layers: Sequence[int], size: tuple[int, int], dtype: torch.dtype
) -> int:
    """Return the default shard size from the bytes of an image of `size` (H, W) pixels.

    An image that keeps its aspect takes more: twice as much at 2:1.
    """
    spec = backbone.spec
    values = 0
    for dim, stride in ((spec.dims[layer], spec.strides[layer]) for layer in layers):
        patches = -(-size[0] // stride) * -(-size[1] // stride)
        tokens = {"cls": 1, "registers": spec.num_registers, "patches": patches}
        values += sum(tokens[kind] for kind in kinds) * dim
    return min(1000, max(1, SHARD_BYTES // (values * dtype.itemsize)))


def _check_tokens(tokens: Sequence[str], backbone: Backbone) -> list[str]:
    """Return the kinds of tokens in the order of `TOKENS`. Raises `ValueError` if the backbone lacks one."""
    wrong = [kind for kind in tokens if kind not in TOKENS]
    if wrong or not tokens:
        raise ValueError(f"tokens={tokens!r}; want at least one of {', '.join(TOKENS)}")
    spec = backbone.spec
    if "cls" in tokens and not spec.has_cls:
        raise ValueError(f"{spec.name} has no CLS token; ask for tokens=('patches',)")
    if "registers" in tokens and not spec.num_registers:
        raise ValueError(f"{spec.name} has no register tokens; leave 'registers' out of tokens")
    return [kind for kind in TOKENS if kind in tokens]
