"""The files of a feature store. This module is the only definition of the layout.

    snapshots/00000001.json       records of the store's states, each created once: `records.Snapshot`
    latest.json                   a copy of the last record, which repairs that one if it is lost
    objects/ab/abcd….json         manifest, class names           } named by the SHA-256
    objects/ab/abcd….parquet      parts of the tables below       } of their content,
    objects/ab/abcd….safetensors  features of one shard, or the   } never changed
                                  images that a route is made with
    done/KEY.json                 shards that are computed and not yet in a snapshot: `records.Done`
    leases/KEY.json               shards that a worker is computing, and runs at work: `leases.Lease`

A snapshot is complete in itself: it names its manifest, its class names, and the parts of three tables. `ROWS` has a
row for each input and says where its features are: in which shard, and in which slot of it. Inputs with the same
content share a slot. `RESULTS` has a row for each slot that is computed, `WORK` one for each slot that is not. A
snapshot with work is a plan; the run that computes it publishes the next one, without work.

Tensors of a shard. n is the number of its slots that could be read, in order, and `L` the number of their patches:

    cls        (n, D)
    registers  (n, R, D)
    patches    (L, D)          image after image, each row-major over its own grid
    grid       (n, 2)  int32   (h, w) of each image's patches; stored with `patches`

These names hold the features of the last layer that was asked. Tensors of the other layers carry the layer's 0-based
index: `cls.3`, `registers.3`, `patches.3`. All layers share `grid`. Each tensor NAME has a second one, `NAME.crc32`,
with the CRC-32 of each image's bytes, (n,) int64, so that a reader of a part can tell whether it is damaged.
"""

from collections.abc import Sequence

import pyarrow as pa
import torch

SCHEMA = 4
TOKENS = ("cls", "registers", "patches")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FOLDERS = ("snapshots", "objects", "done", "leases")
LATEST = "latest.json"
PART = 1 << 16  # most rows of a part of a table, but for one shard that has more

_PLACE = {
    "path": pa.binary(),  # POSIX, from the root; for a member, the archive's path, "/" and the member's name
    "archive": pa.int32(),  # bytes of `path` that name the archive; 0 for a plain file
    "offset": pa.int64(),  # position in the archive
    "bytes": pa.int64(),  # -1 if the file is missing
}

ROWS = pa.schema(
    _PLACE
    | {
        "version": pa.string(),  # changes with the file: its modification time; for a member, the archive's
        "label": pa.int64(),  # index into the class names, -1 where unknown
        "sha256": pa.binary(32),  # of the content; null if it could not be read
        "shard": pa.int64(),  # of the features; null if the content could not be read
        "slot": pa.int64(),
        "reason": pa.string(),  # one of `locate.Reason` if the content could not be read, else null
        "error": pa.string(),
        "gone": pa.bool_(),  # no longer in the source
    }
)

WORK = pa.schema({"shard": pa.int64()} | _PLACE | {"sha256": pa.binary(32)})

_OUTCOME = {
    "reason": pa.string(),  # one of `locate.Reason` if it failed, else null
    "error": pa.string(),  # the reason as a sentence
    "width": pa.int32(),  # pixels of the upright photo; null if unknown
    "height": pa.int32(),
    "frames": pa.int32(),  # of an animation, or pages; only the first is embedded
}

RESULTS = pa.schema({"shard": pa.int64(), "features": pa.string()} | _OUTCOME)  # `features`: name of the object

INDEX = pa.schema(
    {
        "row": pa.int64(),  # position among all inputs
        "path": pa.string(),  # bytes that are not UTF-8 are written \udcXX
        "label": pa.int64(),
        "status": pa.string(),  # "ok", "failed", or "pending" in a store that is not complete
    }
    | _OUTCOME
    | {
        "remedy": pa.string(),  # what would heal a failed input
        "sha256": pa.string(),  # of the content; null if it could not be read
        "same_as": pa.int64(),  # first row with the same features, if this is a later one; else null
        "gone": pa.bool_(),  # no longer in the source
        "stream": pa.int32(),  # of a video's frame; these five are null for photos
        "frame": pa.int64(),  # its index among the frames of the stream
        "pts": pa.int64(),  # its time, in units of `time_base`
        "time_base": pa.string(),  # seconds, such as 1/12800
        "keyframe": pa.bool_(),
    }
)


def object_key(name: str) -> str:
    """Return the key of an object. Its name is the SHA-256 of its content and a suffix."""
    return f"objects/{name[:2]}/{name}"


def snapshot_key(number: int) -> str:
    return f"snapshots/{number:08}.json"


def done_key(key: str) -> str:
    return f"done/{key}.json"


def lease_key(key: str) -> str:
    return f"leases/{key}.json"


def tensor_name(kind: str, layer: int, layers: Sequence[int]) -> str:
    """Return the tensor name of one kind of tokens of `layer` in a store of `layers`."""
    return kind if layer == layers[-1] else f"{kind}.{layer}"


def checksum_name(name: str) -> str:
    """Return the name of the checksums of a tensor."""
    return f"{name}.crc32"
