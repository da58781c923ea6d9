"""The labels of a command line."""

import os
import re
from collections import Counter
from pathlib import Path

from vitbackbone.files import read_bytes

MOST_BYTES = 1 << 24  # largest file of labels; the names of all 21,843 classes of ImageNet take 1 MB
FILE = re.compile(r"[/\\]|\.\w{2,4}$")  # a word that looks like the name of a file


def read_labels(text: str) -> list[str]:
    """Return the labels of `cat,dog`, or of a file with a label a line.

    Raises `ValueError` if there is none, or if one is given twice, and `OSError` if the file cannot be read.
    """
    labels = [label.strip() for label in _given(text) if label.strip()]
    if not labels:
        raise ValueError(
            "--labels holds no label; want labels separated by commas, or a file with one label on each line"
        )
    (label, count), *_ = Counter(labels).most_common(1)
    if count > 1:
        raise ValueError(f"--labels holds {label!r} twice; want each label once")
    return labels


def _given(text: str) -> list[str]:
    if os.path.isfile(text):  # noqa: PTH113  # a long list of labels is not a path, and a Path would raise
        try:
            return read_bytes(Path(text), MOST_BYTES).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"--labels: {text} is not UTF-8 text ({error.reason})") from error
    if FILE.search(text) and "," not in text:
        raise FileNotFoundError(f"--labels: there is no file {text}")
    return text.split(",")
