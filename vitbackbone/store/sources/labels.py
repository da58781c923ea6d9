"""Turn the labels of a source into class indices and class names."""

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
    """The labels contradict each other, or a value is not a label."""


@dataclass(frozen=True)
class Text:
    """A label from an untyped file such as a CSV: a class index if all of them are whole numbers, else a name."""

    text: str


@dataclass(frozen=True)
class Folder:
    """The folder of an image. Its class name depends on the folders of all images."""

    parts: tuple[str, ...]


Label = int | str | Text | Folder | None


def as_label(value: Any) -> Label:
    """Return the label in a cell of a table: a name, a class index or None. 7.0 is 7, because pandas writes it so.

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
    """Return the label in an untyped cell or file; None if it is empty."""
    text = text.strip()
    return Text(text) if text else None


def classes(labels: Sequence[Label], places: Sequence[str], names: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Return the class index of each distinct label, and the names of all classes.

    `places`: the first place of each label, for errors. `names`: the names of whole-number labels, if known.
    Raises `LabelError` if numbers and names are mixed, or if a number is not a class index.
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
                f"{place}: the label is the number {label}, and other labels are names such as {name!r}; "
                "use numbers or names for all"
            )
    texts = [label.text if isinstance(label, Text) else label for label in plain]
    found = sorted({text for text in texts if isinstance(text, str)}, key=_order(texts))
    index = {name: i for i, name in enumerate(found)}
    return [index[text] if isinstance(text, str) else UNKNOWN for text in texts], tuple(map(as_utf8, found))


def as_utf8(name: str) -> str:
    """Return a name as valid UTF-8: bytes that are not UTF-8 become \\udcXX."""
    return name.encode("utf-8", "backslashreplace").decode()


def _of_numbers(
    numbers: Sequence[int | None], places: Sequence[str], names: Sequence[str]
) -> tuple[list[int], tuple[str, ...]]:
    for number, place in zip(numbers, places, strict=True):
        if number is not None and not UNKNOWN <= number < MAX_CLASSES:
            raise LabelError(
                f"{place}: label {number}: whole numbers are class indices; want 0 to {MAX_CLASSES - 1}, or -1 for "
                f"unknown. If it is a name, write it as text, such as 'class {number}'"
            )
    highest = max((number for number in numbers if number is not None), default=UNKNOWN)
    known = names if highest < len(names) else map(str, range(highest + 1))
    return [UNKNOWN if number is None else number for number in numbers], tuple(map(as_utf8, known))


def _number(label: Any) -> int | None:
    return int(float(label.text)) if isinstance(label, Text) else label


def _order(texts: Iterable[object]) -> Any:
    """Return the sort key of class names: their values if all are numbers, else None."""
    numeric = all(_NUMBER.fullmatch(text) for text in texts if isinstance(text, str))
    return (lambda text: (float(text), text)) if numeric else None


def _without_folders(labels: Sequence[Label]) -> list[int | str | Text | None]:
    """Return the labels with each folder replaced by a class name: the first folder in which the images differ.

    So `photos/cat/` and `photos/dog/` give the same classes as `cat/` and `dog/`.
    """
    folders = [label.parts for label in labels if isinstance(label, Folder)]
    shared = 0
    if folders:
        for parts in zip(*folders, strict=False):
            if len(set(parts)) > 1:
                break
            shared += 1
    if len(set(folders)) == 1:  # all images are in one folder
        shared = max(0, min(1, len(folders[0]) - 1))
    return [
        (label.parts[shared] if len(label.parts) > shared else None) if isinstance(label, Folder) else label
        for label in labels
    ]
