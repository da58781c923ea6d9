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
BUCKETS = ("s3", "gs", "az")
SOURCES = (*BUCKETS, "hf", "http", "https")
REMOTE = {"source": SOURCES, "images": SOURCES, "store": BUCKETS, "test": BUCKETS}  # what else an argument may name


def out_folder(text: str) -> str:
    """Check an option that names an output folder. A missing folder is made later."""
    path = Path(text)
    if not text:
        raise argparse.ArgumentTypeError("'' is not the name of a folder")
    if ADDRESS.match(text):
        raise argparse.ArgumentTypeError(f"{escaped(text)} is an address; want a folder of this machine")
    for each in (path, *path.parents):
        if each.exists():
            if not each.is_dir():
                raise argparse.ArgumentTypeError(f"{escaped(str(each))} is a file; want a folder")
            break
    return text


def store_folder(text: str) -> str:
    """Check an option that names the folder of a store, or its URL in a bucket."""
    scheme = _scheme(text)
    if scheme and scheme not in BUCKETS:
        raise argparse.ArgumentTypeError(f"{escaped(text)} is not an address of a bucket; want s3://, gs:// or az://")
    return text if scheme else out_folder(text)


def folder_beside(out: str | None, store: str, name: str) -> Path:
    """Return the output folder of a command: the given one, else one in the store. Raises `ValueError` if the store
    is in a bucket and no folder is given."""
    if out is None and _scheme(store):
        raise ValueError(f"{escaped(store)} is in a bucket; give --out with a folder of this machine")
    return Path(out or Path(store) / name)


def check_places(arguments: argparse.Namespace) -> None:
    """Raise `ValueError` on empty texts in any argument, and on addresses such as s3://bucket/photos in one that cannot
    have them."""
    for name, text in _texts(arguments):
        if not text:  # as "$PHOTOS" gives, if the variable is not set; a Path("") is the current folder
            raise ValueError(f"the argument for {name.replace('_', '-').upper()} is empty")
        scheme = _scheme(text)
        if not scheme or name in (OF_A_CLUSTER, "out") or scheme in REMOTE.get(name, ()):
            continue
        if name in REMOTE:
            want = ", ".join(f"{one}://" for one in REMOTE[name])
            raise ValueError(f"{escaped(text)} has the scheme {scheme}://; want a path of this machine, or {want}")
        what = "hf:OWNER/REPO names a Hugging Face model" if name in MODELS else "download or mount it first"
        raise ValueError(f"{escaped(text)} is an address, but only local files are read and written here: {what}")


def check_device_name(arguments: argparse.Namespace) -> None:
    """Raise `ValueError` on a device that PyTorch does not know, before anything is loaded."""
    name = getattr(arguments, "device", None) or "cpu"
    meant = f"; did you mean {name.replace('gpu', 'cuda')}?" if name.startswith("gpu") else ""
    if meant or not re.fullmatch(r"[a-z]+(:\d+)?", name):
        raise ValueError(f"--device {escaped(name)} is not a device of PyTorch; want {DEVICES}{meant}")


def _scheme(text: str) -> str:
    """Return the scheme of an address in lower case, and "" for a path."""
    return text.partition(":")[0].lower() if ADDRESS.match(text) else ""


def _texts(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    for name, value in vars(arguments).items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str | Path):
                yield name, str(each)
