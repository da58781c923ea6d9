"""Labels of images: what the sources say, and the class indices and class names that come of it."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

UNKNOWN = -1
MAX_CLASSES = 100_000  # a larger whole-number label is an id, not a class index

_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})(\.0+)?")  # 007 is a name; pandas writes whole numbers with gaps as 7.0
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?")


class LabelError(ValueError):
    """Labels that contradict each other, or are none."""


@dataclass(frozen=True)
class Text:
    """A label of a file without types, such as a CSV: a whole number if all of them are, else a name."""

    text: str


@dataclass(frozen=True)
class Folder:
    """The folder that an image lies in. What its class is called depends on the folders of all images."""

    parts: tuple[str, ...]


Label = int | str | Text | Folder | None


def as_label(value: Any) -> Label:
    """Return a class name, a class index, or None for a cell of a table. pandas writes integers with gaps as floats.

    Raises `LabelError` on anything else.
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str | Text | Folder) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise LabelError(f"label {value!r} is a {type(value).__name__}; want text or whole numbers")


def as_text(text: str) -> Text | None:
    """Return the label that a cell or a file without types holds; None if it is empty."""
    text = text.strip()
    return Text(text) if text else None


def classes(labels: Sequence[Label], places: Sequence[str], names: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Return the class index of each distinct label, and the names of all classes.

    `places`: where each label was seen first, for errors. `names`: the names of whole-number labels, if they are known.
    Raises `LabelError` if whole numbers stand beside names, or are no class indices.
    """
    plain = _without_folders(labels)
    whole = all(_WHOLE.fullmatch(label.text) for label in plain if isinstance(label, Text))
    if whole and not any(isinstance(label, str) for label in plain):
        return _of_numbers([_number(label) for label in plain], places, names)
    for label, place in zip(plain, places, strict=True):
        if isinstance(label, int) and label != UNKNOWN:
            example = next(label for label in plain if isinstance(label, str | Text))
            name = example.text if isinstance(example, Text) else example
            raise LabelError(
                f"{place}: the label is the number {label}, while others are names such as {name!r}; "
                "use one kind of label for all"
            )
    texts = [label.text if isinstance(label, Text) else label for label in plain]
    found = sorted({text for text in texts if isinstance(text, str)}, key=_order(texts))
    index = {name: i for i, name in enumerate(found)}
    return [index[text] if isinstance(text, str) else UNKNOWN for text in texts], tuple(map(printable, found))


def printable(name: str) -> str:
    """Return a class name as UTF-8 can hold it: bytes of a folder's name that are not UTF-8 are written \\udcXX."""
    return name.encode("utf-8", "backslashreplace").decode()


def _of_numbers(
    numbers: Sequence[int | None], places: Sequence[str], names: Sequence[str]
) -> tuple[list[int], tuple[str, ...]]:
    for number, place in zip(numbers, places, strict=True):
        if number is not None and not UNKNOWN <= number < MAX_CLASSES:
            raise LabelError(
                f"{place}: label {number}: a whole number is a class index, from 0 to {MAX_CLASSES - 1}, or -1 for "
                f"unknown; if it is a name, write it as text, such as 'class {number}'"
            )
    highest = max((number for number in numbers if number is not None), default=UNKNOWN)
    known = names if highest < len(names) else map(str, range(highest + 1))
    return [UNKNOWN if number is None else number for number in numbers], tuple(map(printable, known))


def _number(label: Any) -> int | None:
    return int(float(label.text)) if isinstance(label, Text) else label


def _order(texts: Iterable[object]) -> Any:
    """Return the key by which names are sorted: numbers by their value, if all are numbers."""
    numeric = all(_NUMBER.fullmatch(text) for text in texts if isinstance(text, str))
    return (lambda text: (float(text), text)) if numeric else None


def _without_folders(labels: Sequence[Label]) -> list[int | str | Text | None]:
    """Return the labels with a class name for each folder: the folder below the one that holds all images.

    So an archive of `cat/` and `dog/` has the same classes as one of `photos/cat/` and `photos/dog/`.
    """
    folders = [label.parts for label in labels if isinstance(label, Folder)]
    shared = 0
    if folders:
        for parts in zip(*folders, strict=False):
            if len(set(parts)) > 1:
                break
            shared += 1
    if len(set(folders)) == 1:  # all images lie in one folder: it is the class, or the first below the top
        shared = max(0, min(1, len(folders[0]) - 1))
    return [
        (label.parts[shared] if len(label.parts) > shared else None) if isinstance(label, Folder) else label
        for label in labels
    ]
