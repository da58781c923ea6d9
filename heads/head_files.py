"""Fitted heads on disk: safetensors and JSON, never pickle."""

from os import PathLike
from typing import Any

from safetensors import SafetensorError
from safetensors import torch as safetensors

from heads.attached import check_backbone
from heads.base import Head
from heads.records import check_fields, check_unedited, read_record, write_record
from heads.registry import create_head
from vitbackbone import BackboneModule, fingerprint


def save_head(head: Head, folder: str | PathLike[str], backbone: BackboneModule) -> None:
    """Write `head.safetensors` and `head.json` to a folder, which is made if missing.

    A head in the folder is replaced as a whole. The record holds the fingerprint of the backbone that the head was
    fitted to, computed from its present weights.

    Raises `ValueError` if `create_head` did not make the head, because it could not be made again, and if its options
    do not fit into JSON.
    """
    if not isinstance(head, Head):
        raise ValueError(f"save_head was given a {type(head).__name__}; want a head that create_head made")
    check_backbone("save_head", backbone)
    if not head.name:
        raise ValueError(f"save_head: this {type(head).__name__} has no name; make it with create_head")
    tensors = safetensors.save({key: value.contiguous() for key, value in head.state_dict().items()})
    record = {
        "head": head.name,
        "config": dict(head.config),
        "backbone": {"name": backbone.spec.name, "fingerprint": fingerprint(backbone)},
    }
    try:
        write_record(folder, "head", tensors, record)
    except (TypeError, ValueError) as error:
        raise ValueError(f"save_head: the options of {head.name!r} do not fit into JSON: {error}") from error


FIELDS = {"head": str, "config": dict[str, Any], "backbone": dict[str, Any]}
FITTED = {"name": str, "fingerprint": str}


def load_head(folder: str | PathLike[str], backbone: BackboneModule) -> Any:
    """Load the head that `save_head` wrote, in eval mode.

    Raises `OSError` if the files cannot be read. Raises `ValueError` if `save_head` did not write them, or if the head
    was fitted to another backbone or other weights.
    """
    check_backbone("load_head", backbone)
    try:
        record, data = read_record(folder, "head")
        check_fields("head.json", record, FIELDS)
        fitted = record["backbone"]
        check_fields("head.json: backbone", fitted, FITTED)
        tensors = safetensors.load(data)
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no head that save_head wrote: {error}") from error
    name, own = record["head"], fingerprint(backbone)
    if fitted["fingerprint"] != own:
        raise ValueError(
            f"the head in {folder} was fitted to {fitted['name']} ({fitted['fingerprint'][:12]}), and this is "
            f"{backbone.spec.name} ({own[:12]}); load that backbone with the same weights, or fit the head again"
        )
    try:
        head = create_head(name, backbone.spec, **record["config"])
        head.load_state_dict(tensors)
        check_unedited(record, "head")
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"the files in {folder} do not fit head {name!r}: {error}") from error
    return head.eval()
