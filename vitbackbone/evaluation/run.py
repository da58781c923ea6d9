"""A run of a protocol on a dataset: what its functions are given, and the stages that a killed run resumes."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors.numpy import load, save

from vitbackbone.contract import BackboneModule, check_device, device_of, fingerprint
from vitbackbone.evaluation.datasets import Layout, find_layout
from vitbackbone.evaluation.protocol import Protocol
from vitbackbone.evaluation.settings import digest
from vitbackbone.evaluation.several_devices import deal
from vitbackbone.files import progress_bar, publish
from vitbackbone.store import all_devices

T = TypeVar("T")
R = TypeVar("R")
Arrays = Mapping[str, NDArray[Any]]
CHUNK = 64  # items that `each` keeps in one file
log = logging.getLogger("vitbackbone")


@dataclass(frozen=True)
class Machine:
    """The means by which a run computes. None of them changes a figure by more than rounding."""

    device: str = "cpu"
    workers: int = 0  # processes or threads that read images, for each device
    batch_size: int = 32  # images of one forward, where the protocol does not set it
    progress: bool = True
    devices: Sequence[str] | Literal["all"] | None = None  # devices that share the images of forwards without training

    def several(self) -> list[str]:
        """Return the names of `devices`, none if only `device` computes. Raises `ValueError` if one is missing."""
        found = all_devices() if self.devices == "all" else list(self.devices or ())
        for each in found or [self.device]:
            check_device(each)
        return found


@dataclass(eq=False)
class Run:
    """The inputs of a protocol's functions."""

    protocol: Protocol
    backbone: BackboneModule
    dataset: str  # name of the dataset that the protocol runs on
    folders: Mapping[str, Path]  # folder of every dataset that was given, by name
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
            self.found[name] = find_layout(name).load(self.folders[name])
        return self.found[name]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the backbone's weights and settings."""
        return fingerprint(self.backbone)

    @contextmanager
    def on_device(self) -> Iterator[BackboneModule]:
        """Give the backbone in eval mode on the run's device. Its tensors may take part in autograd, unlike those of
        `evaluating`."""
        backbone = self.backbone
        home = device_of(backbone) or torch.device("cpu")
        modes = [(part, part.training) for part in backbone.modules()]
        try:
            for part, _ in modes:
                part.training = False
            yield backbone.to(self.machine.device)
        finally:
            for part, mode in modes:
                part.training = mode
            backbone.to(home)

    @cached_property
    def replicas(self) -> list["Run"]:
        """A copy of this run for each of several devices, with its own copy of the backbone; or only this run."""
        devices = self.machine.several()
        return [replace(self, backbone=deepcopy(self.backbone).to(each)) for each in devices] or [self]

    def note(self, sentence: str) -> None:
        """Keep a sentence for the report, and log it."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            log.info("%s: %s", self.protocol.name, sentence)

    def note_tries(self, name: str, values: Float[np.ndarray, " T"], main: bool = True) -> None:
        """Keep the values that a figure is the mean of. `main`: whether the report tells their spread."""
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        self.facts[f"tries of {name}"] = {"values": values.tolist(), "sample standard deviation": spread}
        if main and len(values) > 1:
            self.note(f"{name} is the mean of {len(values)} tries, with a sample standard deviation of {spread:.2f}")

    def shortened(self, fit: T, images: int) -> T:
        """Return the settings of a fit on the images that `limit` leaves. Each image is seen as often as before.

        `fit`: a frozen record with `steps`, and possibly `warmup` and `validate_every`, which are shortened alike.
        Steps that a user gave stay as they are.
        """
        if self.limit is None or images <= self.limit or self.protocol.sources.get("fit.steps") == "--set":
            return fit
        names = [name for name in ("steps", "warmup", "validate_every") if getattr(fit, name, 0)]
        found = {name: math.ceil(getattr(fit, name) * self.limit / images) for name in names}
        self.note(f"--limit shortens the fit to {found['steps']} steps, so that each image is seen as often")
        return replace(fit, **found)  # type: ignore[type-var]  # `T` cannot say that it is a dataclass

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

        Each finished block is kept, so that a killed run resumes after the last one. `key` is as for `stage`.
        """
        parts: list[Arrays] = []
        with progress_bar(what=name, shown=self.machine.progress, total=count, unit="img") as bar:
            for start in range(0, count, size):
                stop = min(start + size, count)
                parts.append(self.stage(name, [*key, start, size], partial(compute, start, stop)))
                bar.update(stop - start)
        return {each: np.concatenate([part[each] for part in parts]) for each in parts[0]} if parts else {}

    def each(
        self,
        name: str,
        key: Sequence[Any],
        items: Sequence[T],
        read: Callable[[T], R],
        computing: Callable[["Run"], Callable[[R], Arrays]],
    ) -> Arrays:
        """Compute arrays for each item, stacked on a new first axis. A killed run resumes after the last 64 items.

        `read`: turns an item into what is computed with, such as a photo; threads read the next items meanwhile.
        `computing`: returns the function that computes for this run, or for a replica of it on one of several devices.
        Each item must give arrays of the same names and shapes. `key` is as for `stage`.
        """

        @cache
        def computes() -> list[Callable[[R], Arrays]]:
            return [computing(run) for run in self.replicas]

        def block(start: int, stop: int) -> Arrays:
            return _stacked(deal(read, items[start:stop], computes(), self.machine.workers))

        with self.on_device():
            return self.blocks(name, key, len(items), CHUNK, block)

    def apart(
        self, name: str, items: Mapping[T, Sequence[Any]], compute: Callable[["Run", T], Arrays]
    ) -> dict[T, Arrays]:
        """Compute arrays for each item, whose shapes may differ. A killed run resumes after the finished items.

        `items`: the key of each item, as for `stage`. `compute`: takes this run, or a replica of it on one of several
        devices.
        """
        with (
            self.on_device(),
            progress_bar(what=name, shown=self.machine.progress, total=len(items)) as bar,
        ):

            def one(run: Run, item: T) -> Arrays:
                found = self.stage(name, items[item], partial(compute, run, item))
                bar.update()
                return found

            computes = [partial(one, run) for run in self.replicas]
            return dict(zip(items, deal(_itself, list(items), computes), strict=True))


def _itself(item: T) -> T:
    return item


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
