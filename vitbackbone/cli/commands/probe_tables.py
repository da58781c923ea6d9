"""The tables and the picture that `probe` writes about the photos that it measured a probe on."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitbackbone.cli.text import escaped

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from heads.probes.measures import Report
    from vitbackbone.store import FeatureStore

SHOWN = 60  # photos of the contact sheet
COLUMNS, SIDE, MARGIN, LINE = 6, 160, 8, 14  # columns of the contact sheet; pixels
PRINTED = 20  # most classes of a confusion matrix that fits a terminal


@dataclass(frozen=True, eq=False)
class Measured:
    """Photos of a store that a probe was measured on, and its predictions."""

    store: "FeatureStore"
    images: "NDArray[np.int64]"  # rows of the store, (N,)
    truth: "NDArray[np.int64]"  # indices into `names`, (N,)
    predicted: "NDArray[np.int64]"
    probabilities: "NDArray[Any]"  # probability of the predicted class, (N,)
    names: Sequence[str]

    @property
    def wrong(self) -> "NDArray[np.int64]":
        """The indices of the misclassified photos, the most confident mistakes first."""
        rows = np.flatnonzero(self.truth != self.predicted)
        return rows[np.argsort(-self.probabilities[rows], kind="stable")]

    def write(self, folder: Path, report: "Report", photos: Path | None) -> tuple[list[Path], str]:
        """Write all files into a folder. `photos`: the folder of the photos, if it is known.

        Returns the files, and a sentence if the photos of a contact sheet were not found.
        """
        names = [row.name for row in report.classes]
        everything, wrong = np.arange(len(self.truth)), self.wrong
        tables: dict[str, list[Sequence[object]]] = {
            "confusion.csv": [["class", *names], *([a, *b] for a, b in zip(names, report.confusion, strict=True))],
            "held_out.csv": list(self._table(everything)),
            "misclassified.csv": list(self._table(wrong)),
        }
        files = [_write(folder / name, _csv(rows)) for name, rows in tables.items()]
        sheet, note = folder / "misclassified.jpg", ""
        picture = self._contact_sheet(wrong[:SHOWN], photos) if len(wrong) else None
        sheet.unlink(missing_ok=True)  # one of another fit
        if picture is not None:
            encoded = io.BytesIO()
            picture.save(encoded, "JPEG", quality=90)
            files.append(_write(sheet, encoded.getvalue()))
        elif len(wrong):
            note = (
                f"the photos of {self.store.storage.url} were not found, so no picture shows mistakes; "
                "give --photos DIR"
            )
        return files, note

    def _table(self, rows: "NDArray[np.int64]") -> Iterator[Sequence[object]]:
        yield ["path", "label", "predicted", "probability"]
        for row in rows.tolist():
            path = self.store.paths[int(self.images[row])]
            yield [path, self.names[self.truth[row]], self.names[self.predicted[row]], f"{self.probabilities[row]:.4f}"]

    def _contact_sheet(self, rows: "NDArray[np.int64]", photos: Path | None) -> "Image | None":
        from PIL import Image, ImageDraw

        from vitbackbone.store import source_files

        found = source_files(self.store, [int(self.images[row]) for row in rows], photos)
        if found is None:
            return None
        columns = min(COLUMNS, len(rows))
        width, height = SIDE + MARGIN, SIDE + 3 * LINE + MARGIN
        sheet = Image.new("RGB", (columns * width + MARGIN, -(-len(rows) // columns) * height + MARGIN), "white")
        draw = ImageDraw.Draw(sheet)
        for i, (row, data) in enumerate(zip(rows.tolist(), found, strict=True)):
            x, y = MARGIN + i % columns * width, MARGIN + i // columns * height
            thumbnail = _thumbnail(data)
            sheet.paste(thumbnail, (x + (SIDE - thumbnail.width) // 2, y + (SIDE - thumbnail.height) // 2))
            lines = [
                ("gray", "", Path(self.store.paths[int(self.images[row])]).name, ""),
                ("black", "true: ", self.names[self.truth[row]], ""),
                ("firebrick", "found: ", self.names[self.predicted[row]], f" ({self.probabilities[row]:.2f})"),
            ]
            for number, (ink, before, name, behind) in enumerate(lines):
                text = _fitting(draw, before, escaped(name), behind)
                draw.text((x, y + SIDE + number * LINE), text, fill=ink)
        return sheet


def confusion_table(report: "Report") -> str:
    """Return the confusion matrix as text, or "" if it has too many classes for a terminal."""
    names = [row.name for row in report.classes]
    if len(names) > PRINTED:
        return ""
    heads = [str(i) for i in range(len(names))]
    cells = [[str(count) for count in row] for row in report.confusion]
    width = max(len(cell) for row in [heads, *cells] for cell in row) + 2
    titles = [r"true \ predicted", *(f"{i} {name}" for i, name in enumerate(names))]
    rows = list(zip(titles, [heads, *cells], strict=True))
    left = max(len(title) for title, _ in rows)
    lines = [f"{title:<{left}}" + "".join(f"{cell:>{width}}" for cell in row) for title, row in rows]
    return "\n".join(lines)


def _thumbnail(data: bytes | None) -> "Image":
    from PIL import Image, ImageOps

    from vitbackbone.images import Photo

    if data is None:  # missing, or changed since the store was made
        return Image.new("RGB", (SIDE, SIDE), "lightgray")
    picture = Image.fromarray(Photo(data).decode().permute(1, 2, 0).contiguous().numpy())
    return ImageOps.contain(picture, (SIDE, SIDE))


def _fitting(draw: Any, before: str, name: str, behind: str) -> str:
    """Return the three texts, with the name cut if they are wider than a thumbnail."""
    dots = ""
    while name and draw.textlength(before + name + dots + behind) > SIDE:
        name, dots = name[:-1], "..."
    return before + name + dots + behind


def _csv(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")


def _write(file: Path, data: bytes) -> Path:
    from vitbackbone.files import publish

    with publish(file) as temporary:
        temporary.write_bytes(data)
    return file
