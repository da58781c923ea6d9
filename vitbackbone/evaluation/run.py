"""A run of a protocol on a dataset: what its functions are given, and the stages that a killed run resumes."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from vitbackbone.contract import BackboneModule, fingerprint
from vitbackbone.evaluation.datasets import Layout, find_layout
from vitbackbone.evaluation.protocol import Protocol
from vitbackbone.evaluation.settings import digest
from vitbackbone.files import progress_bar, publish

T = TypeVar("T")
Arrays = Mapping[str, NDArray[Any]]
CHUNK = 64  # items that `each` keeps in one file
log = logging.getLogger("vitbackbone")


@dataclass(frozen=True)
class Machine:
    """How a run computes. None of it changes a figure by more than rounding."""

    device: str = "cpu"
    workers: int = 0  # processes that read images
    batch_size: int = 32  # images of one forward, where the protocol does not set it
    progress: bool = True
    devices: Sequence[str] | Literal["all"] | None = None  # that extract in parallel, one process each


@dataclass(eq=False)
class Run:
    """The inputs of a protocol's functions."""

    protocol: Protocol
    backbone: BackboneModule
    dataset: str  # name of the dataset that the protocol runs on
    folders: Mapping[str, Path]  # of every dataset that was given, by name
    out: Path
    limit: int | None = None
    machine: Machine = field(default_factory=Machine)
    notes: list[str] = field(default_factory=list)  # sentences for the report
    unreadable: list[str] = field(default_factory=list)  # images that could not be read
    heads: dict[str, Path] = field(default_factory=dict)  # folders of trained heads
    facts: dict[str, Any] = field(default_factory=dict)  # what the fit chose, such as the best learning rate
    found: dict[str, Any] = field(default_factory=dict)  # datasets that were read, for all runs of one call

    @property
    def data(self) -> Any:
        """The dataset that the protocol runs on, as its layout reads it. `limit` is not applied."""
        return self.read(self.dataset)

    @property
    def layout(self) -> Layout:
        return find_layout(self.dataset)

    def read(self, name: str) -> Any:
        """Read a dataset that was given. Raises `ValueError` if it was not, or has another layout."""
        if name not in self.folders:
            raise ValueError(f"{self.protocol.name} needs the dataset {name}; give --data {name}=DIR")
        if name not in self.found:
            self.found[name] = find_layout(name).read(self.folders[name])
        return self.found[name]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the backbone's weights and settings."""
        return fingerprint(self.backbone)

    def note(self, sentence: str) -> None:
        """Keep a sentence for the report, and log it."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            log.info("%s: %s", self.protocol.name, sentence)

    def file(self, name: str, *key: Any, ending: str = "safetensors") -> Path:
        """Return the file of a stage. Its name has a hash of the weights and of `key`: all that the stage depends on.

        Protocols with an equal key share the file.
        """
        folder = self.out / "work"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}-{digest(self.fingerprint, self.limit, *key)[:16]}.{ending}"

    def stage(self, name: str, key: Sequence[Any], compute: Callable[[], Arrays]) -> Arrays:
        """Return the arrays that `compute` returns, or that an earlier run with an equal key computed.

        `key`: everything that the arrays depend on, except the weights and the limit: settings and dataset digests.
        """
        file = self.file(name, *key)
        kept = _read(file)
        if kept is None:
            kept = {each: np.asarray(array, order="C") for each, array in compute().items()}
            with publish(file) as temporary:
                temporary.write_bytes(save(dict(kept)))
        return kept

    def blocks(
        self, name: str, key: Sequence[Any], count: int, size: int, compute: Callable[[int, int], Arrays]
    ) -> Arrays:
        """Compute arrays for rows `start` to `stop`, block by block, and join them on their first axis.

        Each finished block is kept, so that a killed run resumes behind the last one. `key` is as for `stage`.
        """
        parts: list[Arrays] = []
        with progress_bar(what=name, shown=self.machine.progress, total=count, unit="img") as bar:
            for start in range(0, count, size):
                stop = min(start + size, count)
                parts.append(self.stage(name, [*key, start, size], partial(compute, start, stop)))
                bar.update(stop - start)
        return {each: np.concatenate([part[each] for part in parts]) for each in parts[0]} if parts else {}

    def each(self, name: str, key: Sequence[Any], items: Sequence[T], compute: Callable[[T], Arrays]) -> Arrays:
        """Compute arrays for each item, stacked on a new first axis. A killed run resumes behind the last 64 items.

        Each item must give arrays of the same names and shapes. `key` is as for `stage`.
        """

        def block(start: int, stop: int) -> Arrays:
            return _stacked([*map(compute, items[start:stop])])

        return self.blocks(name, key, len(items), CHUNK, block)


def _stacked(rows: Sequence[Arrays]) -> Arrays:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _read(file: Path) -> Arrays | None:
    """Return the arrays of a stage's file, or None if it is missing or damaged."""
    try:
        return load(file.read_bytes())
    except FileNotFoundError:
        return None
    except Exception as error:  # safetensors raises several; the stage is then computed again
        log.warning("%s is damaged (%s) and is computed again", file, error)
        return None
