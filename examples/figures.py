"""Figures in the style of papers: titled columns, colour bars, and distinct class colours."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, hsv_to_rgb, to_rgb
from matplotlib.figure import Figure

DPI = 200
DISTINCT = [
    *("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45", "#fabed4"),
    *("#469990", "#dcbeff", "#9a6324", "#fffac8", "#800000", "#aaffc3", "#808000", "#ffd8b1", "#000075", "#a9a9a9"),
]


def panels(rows: int, columns: int, titles: Sequence[str] = (), side: float = 1.6) -> tuple[Figure, np.ndarray]:
    """Make a figure with (rows, columns) axes without ticks, and a title above each column."""
    figure = Figure(figsize=(side * columns + 0.9, side * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for each in axes.flat:
        each.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize=10)
    return figure, axes


def colour_bar(figure: Figure, axes: np.ndarray, colours: str, low: float, high: float, label: str) -> Normalize:
    """Add a colour bar beside `axes`, and return the norm that maps values to its colours."""
    norm = Normalize(low, high)
    figure.colorbar(ScalarMappable(norm, colours), ax=list(axes.flat), label=label, shrink=0.8, pad=0.02)
    return norm


def image(axis: Axes, pixels: Any, **options: Any) -> None:
    axis.imshow(pixels, interpolation="nearest", **options)


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def palette(count: int) -> np.ndarray:
    """Return (count, 3) uint8 colours: Trubetskoy's list of distinct colours, then hues by the golden ratio."""
    hues = [hsv_to_rgb(((i * 0.618) % 1, 0.9, 0.55 + 0.4 * (i % 2))) for i in range(count - len(DISTINCT))]
    return np.uint8(np.round(255 * np.array([*map(to_rgb, DISTINCT), *hues][:count])))
