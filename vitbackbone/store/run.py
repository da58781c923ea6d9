"""The extraction: list the images, plan the shards, and compute those that are not complete."""

import logging
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from functools import cache, partial
from os import PathLike
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vitbackbone.contract import Backbone, Precision, Runtime, check_device, weights_sha256
from vitbackbone.files import LocalStorage, open_storage, progress_bar
from vitbackbone.images import Decoding, Resolution, Sampling
from vitbackbone.store.layout import DTYPES, ROWS, TOKENS
from vitbackbone.store.manifest import Manifest, make_manifest
from vitbackbone.store.output_folder import check_folder
from vitbackbone.store.records import Snapshot
from vitbackbone.store.salvage import remembered, stored_manifest, undamaged
from vitbackbone.store.snapshots import latest
from vitbackbone.store.sources.rows import Root
from vitbackbone.store.sources.source import list_source
from vitbackbone.store.store import FeatureStore
from vitbackbone.store.transaction import check_settings, check_waiting, publish_plan, publish_results
from vitbackbone.store.workers.cluster import RayCluster, compute_on_cluster
from vitbackbone.store.workers.leases import Leases
from vitbackbone.store.workers.processes import all_devices, pull_on_devices
from vitbackbone.store.workers.pull import pull
from vitbackbone.store.workers.route import (
    AUTO_FROM,
    Choice,
    choose,
    is_optimised,
    put_sample,
    read_sample,
    stored_sample,
)
from vitbackbone.store.workers.shard_job import Job, Tally
from vitbackbone.store.workers.slices import Slice

SHARD_BYTES = 2**28  # largest default shard

log = logging.getLogger("vitbackbone")


def extract(
    backbone: Backbone,
    source: str | PathLike[str] | None,
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
    devices: Sequence[str] | Literal["all"] | None = None,
    slice: tuple[int, int] = (0, 1),
    cluster: RayCluster | None = None,
    fps: float | None = None,
    stride: int | None = None,
    keyframes: bool = False,
    retry_failed: bool = False,
    allow_private_urls: bool = False,
    progress: bool = True,
) -> FeatureStore:
    """Write the features of the images of `source` into the store `out`, and return the store.

    An image that cannot be read is a row with the reason. The same holds for an image whose features are not finite.
    A second run computes only what is missing, damaged, new or changed. New images get rows after the existing ones.
    Images with the same content are computed once. The run needs about twice the memory of one shard.

    `backbone`: must be an `nn.Module`. It runs on `device` in eval mode and in its own dtype, and is left unchanged.
    `source`: a folder, a glob, a CSV or parquet list, or archives, on this machine or in a bucket; see `list_inputs`.
    With None, no images are listed: the run computes shards that another run has planned, to help it from another
    machine.
    `out`: a folder, or the URL of a prefix in a bucket such as s3://bucket/features.
    `tokens`: any of "cls", "registers", "patches".
    `layers`: block indices, negative from the end. The backbone's final norm is applied if it has one. The store
    shows the last of these layers by default.
    `shard_size`: images of a shard, the unit of work. The default is 1000, or fewer so that a shard has about 256 MiB.
    `resolution`, `keep_aspect`: as for `Preprocess`. `decoding`: as for `Preprocess.pixels`; the default is exact.
    `max_pixels`: most pixels of a photo, by default `PIL.Image.MAX_IMAGE_PIXELS`. A larger photo is a failed row, so
    that a decompression bomb is not decoded.
    `dtype`: dtype of the stored features, "float32", "float16" or "bfloat16".
    `precision`, `engine`: as for `optimize`. The manifest records the route, and later runs take the same route, made
    with the same images, which the store keeps. With the defaults, a run of 2000 images or more takes the fastest route
    that equals float32 to 1e-5. A smaller run takes plain torch, because comparing the routes takes longer than it
    saves.
    `workers`: processes that read images meanwhile. With 0, this process reads them between two forwards, in as many
    threads as torch has. That is the fastest if the same CPUs compute the features.
    `devices`: compute in one process for each of these devices, such as ("cuda:0", "cuda:1") or ("cpu", "cpu"); each
    takes the next free shard. "all" is each GPU, or each group of CPUs of a machine without one. A script that passes
    it must call `extract` under `if __name__ == "__main__":`, because each process imports the script.
    `slice`: (i, n) computes slice i of n, counted from 0, while other runs compute the others. The returned store is
    partial until all slices are complete.
    `cluster`: compute the shards on a Ray cluster.
    `fps`, `stride`, `keyframes`: the frames of a video that are read, as for `Sampling`; all by default.
    `retry_failed`: read the failed images again. `allow_private_urls`: as for `list_inputs`. `progress`: show a
    progress bar.

    Raises `ValueError` if the source has no images, or if an argument does not fit the backbone or another argument. It
    also raises this error if `out` is a store with other settings, and lists each difference. Raises
    `ChildProcessError` if a worker was killed, and `MemoryError` if memory does not suffice for a single image.
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
    if isinstance(devices, str) and devices != "all":
        raise ValueError(f"devices={devices!r}; want 'all' or several, such as ({devices!r},); for one, give device")
    several = all_devices() if devices == "all" else list(devices or ())
    if cluster is None:
        for one in several or [str(device)]:
            check_device(one)
    elif several:
        raise ValueError("devices are those of this machine; for a cluster, give the GPUs of each actor")
    if is_optimised(backbone) and (several or cluster is not None):
        raise ValueError(
            "an optimised backbone cannot be sent to other processes; give the plain one, a precision and an engine"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; want one of {', '.join(DTYPES)}")
    if decoding not in get_args(Decoding):
        raise ValueError(f"decoding={decoding!r}; want one of {', '.join(get_args(Decoding))}")
    if decoding == "gpu" and (workers or not all(str(one).startswith("cuda") for one in several or (device,))):
        raise ValueError(
            "decoding='gpu' wants a CUDA device and workers=0, because the process that computes decodes; with reading "
            f"processes use 'exact' or 'fast' (device={str(device)!r}, workers={workers})"
        )
    mine = Slice(*slice)
    size = backbone.preprocess.view((1, 1), resolution, keep_aspect).size  # refuses an impossible resolution
    kinds = _check_tokens(tokens, backbone)
    indices = backbone.spec.indices(layers)
    if len(set(indices)) < len(indices):
        raise ValueError(f"layers={list(layers)} names a layer twice; want each once")
    shard_size = shard_size or _default_shard_size(backbone, kinds, indices, size, DTYPES[dtype])
    storage = open_storage(out)
    if isinstance(storage, LocalStorage):
        check_folder(storage.root)
    sampling = Sampling(fps, stride, keyframes)
    last, inputs = latest(storage), None
    if source is not None:
        known = partial(remembered, storage, last) if last is not None else None
        inputs = list_source(source, allow_private_urls, sampling, known)
    for note in inputs.notes if inputs is not None else ():
        log.warning("%s", note)
    if inputs is not None:
        root, count = inputs.root, len(inputs)
    elif last is not None:
        root, count = Root(last.root, allow_private_urls), last.counts.rows
    else:
        raise ValueError(f"{storage.url} is not a store yet; give the source of the images")
    made_by = partial(
        make_manifest,
        backbone,
        weights_sha256(backbone),
        tokens=kinds,
        layers=indices,
        shard_size=shard_size,
        resolution=resolution,
        keep_aspect=keep_aspect,
        decoding=decoding,
        dtype=dtype,
    )

    def first_images(last: Snapshot | None) -> list[Tensor]:
        listed = inputs.table if inputs is not None else ROWS.empty_table()
        first = next(undamaged(storage, last.rows if last is not None else (), ROWS, set()), listed)
        return read_sample(root, first, backbone.preprocess, resolution, keep_aspect, max_pixels)

    @cache
    def settings(last: Snapshot | None) -> Manifest:
        """Return the settings of this run. A store that is there keeps its route."""
        if is_optimised(backbone):
            return made_by(runtime=backbone.runtime, calibration=None)
        stored = None if last is None else stored_manifest(storage, last, made_by(runtime=Runtime(), calibration=None))
        if stored is not None:
            runtime = choose(backbone, precision, engine, Runtime(**stored["runtime"]), count, [], device)
            return made_by(runtime=runtime, calibration=stored["calibration"])
        plain = (precision, engine) == ("fp32", "auto") and count < AUTO_FROM
        sample = [] if plain else first_images(last)
        runtime = choose(backbone, precision, engine, None, count, sample, device)
        return made_by(runtime=runtime, calibration=None if runtime == Runtime() else put_sample(storage, sample))

    def watch(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        bar: Iterable[Any] = progress_bar(items, what, progress, passing=True, total=total)
        return bar

    settings(last)  # refuses a route that cannot run before anything is written
    with Leases(storage).kept() as leases:
        leases.claim_run()
        leases.sweep()
        storage.sweep()
        if inputs is not None:
            snapshot = publish_plan(storage, settings, inputs, mine, retry_failed, watch)
        else:
            assert last is not None  # checked above
            check_settings(storage, last, settings(last))
            check_waiting(storage, last, mine, watch)
            snapshot = last
        manifest = settings(snapshot)
        sample = stored_sample(storage, manifest["calibration"], partial(first_images, snapshot))
        job = Job(storage, root, manifest, batch_size, workers, str(device), sample, max_pixels)
        while snapshot.work:
            if cluster is not None:
                tallies = compute_on_cluster(job, backbone, snapshot, mine, cluster)
            elif several:
                tallies = pull_on_devices(job, backbone, snapshot, mine, several)
            else:
                tallies = pull(job, backbone, snapshot, mine)
            _show(tallies, snapshot, mine, progress)
            snapshot = publish_results(storage, snapshot)
            if not mine.whole:
                break  # other runs compute the other shards
    return FeatureStore(out, snapshot=snapshot.number, partial=not mine.whole)


def _show(tallies: Generator[Tally, None, None], snapshot: Snapshot, mine: Slice, progress: bool) -> None:
    """Run the work and show its progress. An exception ends the work: leases are given back, processes stopped."""
    counts = snapshot.counts
    done = counts.rows - sum(part.rows for part in snapshot.work) // mine.count
    failed = counts.failed
    with closing(tallies), progress_bar(shown=progress, total=counts.rows, initial=done, unit="img") as bar:
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
