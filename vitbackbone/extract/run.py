"""The extraction itself: list, read, embed, write, shard after shard."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm import tqdm

from vitbackbone.extract.layout import DTYPES, TOKENS, tensor_name
from vitbackbone.extract.manifest import make_manifest
from vitbackbone.extract.reader import Batch, ImageReader, Record, read_batches
from vitbackbone.extract.source import Inputs, list_inputs
from vitbackbone.extract.store import FeatureStore
from vitbackbone.extract.writer import claim, verified, write_shard
from vitbackbone.features import Backbone, Features, pool_cls
from vitbackbone.fingerprint import weights_sha256
from vitbackbone.inference import check_device, evaluating
from vitbackbone.preprocess import Resolution

SHARD_BYTES = 2**28


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
    dtype: str = "float32",
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> FeatureStore:
    """Writes the features of the images of `source` into the store `out`, and returns it.

    A file that cannot be read, and an image whose features are not finite, is a row that says why. Run again after an
    interruption, it does the shards that are missing or damaged. Memory is bounded by about twice one shard.

    `backbone`: also an `nn.Module`. It runs in its own precision, in eval mode on `device`, and is left as it was.
    `source`: a folder, a glob, or a CSV or parquet list; see `list_inputs`.
    `tokens`: any of "cls", "registers", "patches".
    `layers`: block indices, negative from the end, with the final norm if the backbone has one. The last is what the
    store shows first.
    `shard_size`: images to a shard, the unit of work; by default 1000, or fewer so that a shard has about 256 MiB.
    `resolution`, `keep_aspect`: as for `Preprocess`.
    `dtype`: of the stored features, "float32", "float16" or "bfloat16".
    `workers`: processes that read images; 0 reads in this one. `progress`: show a bar.

    Raises `ValueError` on a source without images, on values that contradict each other or the backbone, and if `out`
    holds a store of something else, with each difference.
    """
    if not isinstance(backbone, nn.Module):
        raise ValueError(f"backbone is a {type(backbone).__name__}; want one that is an nn.Module")
    for name, value, least in (("batch_size", batch_size, 1), ("shard_size", shard_size, 1), ("workers", workers, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    check_device(device)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; want one of {', '.join(DTYPES)}")
    size = backbone.preprocess.view((1, 1), resolution, keep_aspect).size  # refuses an impossible resolution
    kinds = _check_tokens(tokens, backbone)
    indices = backbone.spec.indices(layers)
    if len(set(indices)) < len(indices):
        raise ValueError(f"layers={list(layers)} asks for a layer twice")

    if shard_size is None:
        shard_size = _default_shard_size(backbone, kinds, indices, size, DTYPES[dtype])
    inputs = list_inputs(source)
    manifest = make_manifest(
        backbone,
        weights_sha256(backbone),
        inputs,
        tokens=kinds,
        layers=indices,
        shard_size=shard_size,
        resolution=resolution,
        keep_aspect=keep_aspect,
        dtype=dtype,
    )
    directory = Path(out)
    claim(directory, manifest)

    shards = [range(start, min(start + shard_size, len(inputs))) for start in range(0, len(inputs), shard_size)]
    # Where nobody watches, a log of it all gets a line now and then.
    interval = 0.1 if sys.stderr.isatty() else 10
    numbers = tqdm(
        range(len(shards)),
        desc="checking what is done",
        leave=False,
        disable=not progress,
        mininterval=interval,
        delay=2,
    )
    markers = [verified(directory, manifest, number) for number in numbers]
    todo = [number for number, marker in enumerate(markers) if marker is None]
    done = [marker for marker in markers if marker is not None]
    if todo:
        reader = ImageReader(backbone.preprocess, resolution, keep_aspect)
        paths = _batches(inputs, [shards[number] for number in todo], batch_size)
        batches = read_batches(reader, paths, workers)  # started before the backbone moves to its device
        embedder = _Embedder(backbone, kinds, indices, DTYPES[dtype], device)
        failed = sum(marker.rows - marker.read for marker in done)
        with (
            _on(device, backbone),
            evaluating(backbone),
            tqdm(
                total=len(inputs),
                initial=sum(m.rows for m in done),
                unit="img",
                disable=not progress,
                mininterval=interval,
            ) as bar,
        ):
            for number in todo:
                shard = _ShardInMemory(embedder.empty())
                for _ in range(0, len(shards[number]), batch_size):
                    records, rows = embedder(next(batches))
                    shard.add(records, rows)
                    failed += sum(record.error is not None for record in records)
                    bar.set_postfix(failed=failed, refresh=False)
                    bar.update(len(records))
                write_shard(directory, manifest, number, inputs, shard.records, shard.tensors())
    return FeatureStore(directory)


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


def _batches(inputs: Inputs, shards: Sequence[range], batch_size: int) -> Iterator[list[str]]:
    """The files of each batch. A batch never crosses from one shard into another."""
    for rows in shards:
        for start in rows[::batch_size]:
            yield inputs.files(start, min(start + batch_size, rows.stop))


@contextmanager
def _on(device: torch.device | str, module: nn.Module) -> Iterator[None]:
    """The module on `device` meanwhile."""
    home = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    try:
        module.to(device)
        yield
    finally:
        module.to(home)


@dataclass(frozen=True, eq=False)
class _Embedder:
    """Batches to rows of the tensors of a shard."""

    backbone: Backbone
    kinds: Sequence[str]
    layers: Sequence[int]
    dtype: torch.dtype
    device: torch.device | str

    def empty(self) -> dict[str, Tensor]:
        """The tensors of a shard without images."""
        spec = self.backbone.spec
        before = {"cls": (), "registers": (spec.num_registers,), "patches": ()}
        tensors = {
            tensor_name(kind, layer, self.layers): torch.empty(0, *before[kind], spec.dims[layer], dtype=self.dtype)
            for layer in self.layers
            for kind in self.kinds
        }
        return tensors | ({"grid": torch.empty(0, 2, dtype=torch.int32)} if "patches" in self.kinds else {})

    def __call__(self, batch: Batch) -> tuple[list[Record], dict[str, Tensor]]:
        """The record of each input, and the rows of those that have features."""
        records = list(batch.records)
        if not batch.shapes:
            return records, {}
        images = batch.images(self.device)
        outputs = self.backbone.forward_layers(images, self.layers, norm=self.backbone.spec.norms(self.layers))
        values = {
            (layer, kind): _tokens(output, kind).to("cpu", self.dtype)
            for layer, output in zip(self.layers, outputs, strict=True)
            for kind in self.kinds
        }
        finite = torch.stack([value.isfinite().flatten(1).all(dim=1) for value in values.values()]).all(dim=0)

        read = [i for i, record in enumerate(records) if record.error is None]
        for i, good in zip(read, finite.tolist(), strict=True):
            if not good:
                records[i] = replace(records[i], error=f"features are not finite (NaN or Inf) in {self.dtype}")
        grids = torch.tensor(outputs[0].geometry.grids, dtype=torch.int32)
        rows = {
            tensor_name(kind, layer, self.layers): _flat(value, grids, finite) if kind == "patches" else value[finite]
            for (layer, kind), value in values.items()
        }
        return records, rows | ({"grid": grids[finite]} if "patches" in self.kinds else {})


def _tokens(features: Features, kind: str) -> Float[Tensor, "B ..."]:
    if kind == "cls":
        return pool_cls(features)
    return features.registers if kind == "registers" else features.patches


def _flat(maps: Float[Tensor, "B D h w"], grids: Tensor, keep: Bool[Tensor, " B"]) -> Float[Tensor, "L D"]:
    """The patches of the images to keep, one after another, each without the padding of its map."""
    cut = [maps[i, :, : grids[i, 0], : grids[i, 1]].flatten(1).T for i in keep.nonzero().flatten().tolist()]
    return torch.cat([maps.new_empty(0, maps.shape[1]), *cut])


class _ShardInMemory:
    """The rows of one shard while its batches come in."""

    def __init__(self, empty: dict[str, Tensor]) -> None:
        self.records: list[Record] = []
        self._parts = {name: [tensor] for name, tensor in empty.items()}

    def add(self, records: Sequence[Record], rows: dict[str, Tensor]) -> None:
        self.records += records
        for name, tensor in rows.items():
            self._parts[name].append(tensor)

    def tensors(self) -> dict[str, Tensor]:
        """All rows. The parts are let go one by one, so that the shard is not in memory twice."""
        return {name: torch.cat(self._parts.pop(name)) for name in list(self._parts)}
