"""Checks of the places that a command line names: files, folders and devices."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from vitbackbone.cli.text import escaped

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")  # one slash, because Path turns `s3://bucket` into `s3:/bucket`
OF_A_CLUSTER = "ray_address"
DEVICES = "cpu, cuda, cuda:1 or mps"
MODELS = ("model", "name")


def out_folder(text: str) -> str:
    """Check an option that names an output folder. A missing folder is made later."""
    path = Path(text)
    if not text:
        raise argparse.ArgumentTypeError("'' is not the name of a folder")
    for each in (path, *path.parents):
        if each.exists():
            if not each.is_dir():
                raise argparse.ArgumentTypeError(f"{escaped(str(each))} is a file; want a folder")
            break
    return text


def check_places(arguments: argparse.Namespace) -> None:
    """Raise `ValueError` on addresses such as s3://bucket/photos in any argument."""
    for name, text in _texts(arguments):
        if ADDRESS.match(text) and name != OF_A_CLUSTER:
            what = "hf:OWNER/REPO names a Hugging Face model" if name in MODELS else "download or mount it first"
            raise ValueError(f"{escaped(text)} is an address, but only local files are read and written: {what}")


def check_device_name(arguments: argparse.Namespace) -> None:
    """Raise `ValueError` on a device that PyTorch does not know, before anything is loaded."""
    name = getattr(arguments, "device", None) or "cpu"
    meant = f"; did you mean {name.replace('gpu', 'cuda')}?" if name.startswith("gpu") else ""
    if meant or not re.fullmatch(r"[a-z]+(:\d+)?", name):
        raise ValueError(f"--device {escaped(name)} is not a device of PyTorch; want {DEVICES}{meant}")


def _texts(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    for name, value in vars(arguments).items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str | Path):
                yield name, str(each)
