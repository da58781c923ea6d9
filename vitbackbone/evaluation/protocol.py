"""A protocol: frozen records of its dataset, view, features, fit and metric, and the function that computes scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from vitbackbone.evaluation.metrics.intervals import Interval
from vitbackbone.evaluation.settings import Setting, changed, digest, find_key, settings_of

if TYPE_CHECKING:
    from vitbackbone.evaluation.run import Run

PARTS = ("view", "features", "fit", "metric")


@dataclass(frozen=True)
class Nothing:
    """The part of a protocol that has no settings, such as the fit of a retrieval."""


@dataclass(frozen=True)
class Protocol:
    """A protocol, or one variant of it. Each part is a frozen dataclass whose fields are `setting`s.

    A protocol is one file in `protocols/` with a tuple `VARIANTS` of these records, the default first, and one line in
    `protocols.FILES`. Another variant is another record: `dataclasses.replace(PROTOCOL, variant="v3", fit=...)`.
    """

    name: str  # such as "knn"
    variant: str  # such as "v2": DINO is v1, DINOv2 v2, DINOv3 v3
    summary: str  # one sentence
    source: str  # paper and code
    kind: str  # kind of its dataset, as `Layout.kind`
    datasets: tuple[str, ...]  # the papers' datasets; the first one is meant if `data` is a single folder
    view: Any
    features: Any
    fit: Any
    metric: Any
    score: Callable[["Run"], Sequence["Score"]]
    also: tuple[str, ...] = ()  # datasets that it needs beside its own
    optional: tuple[str, ...] = ()  # datasets that it scores too, if they are given
    several_labels: bool = False  # whether an image may have several labels, as in VOC 2007
    joined: bool = False  # whether it reads all given datasets of its kind at once, and not one after the other
    sources: Mapping[str, str] = field(
        default_factory=dict
    )  # sources of the settings whose value is not the field's default
    traps: tuple[str, ...] = ()  # mistakes that change the figure unnoticed, for the protocol's page

    def settings(self) -> list[Setting]:
        """List every setting with its meaning and source. A setting without its own source has the protocol's."""
        found = []
        for part in PARTS:
            found += settings_of(getattr(self, part), f"{part}.", self.sources)
        return [replace(each, source=each.source or self.source) for each in found]

    def values(self) -> dict[str, Any]:
        """Return the value of each setting by its key."""
        return {each.key: each.value for each in self.settings()}

    def names(self) -> set[str]:
        """Return every name that `with_settings` takes: whole keys, and their last parts."""
        return {name for key in self.values() for name in (key, key.rpartition(".")[2])}

    def with_settings(self, given: Mapping[str, str]) -> "Protocol":
        """Return the protocol with settings changed to the values of texts, as `--set` gives them.

        Raises `ValueError` on an unknown name and on text that is not a value of the setting.
        """
        protocol = self
        for name, text in given.items():
            part, _, last = (key := find_key(name, list(self.values()))).partition(".")
            record = changed(getattr(protocol, part), last, text, key)
            protocol = replace(protocol, **{part: record}, sources={**protocol.sources, key: "--set"})
        return protocol

    def hash(self) -> str:
        """Return a SHA-256 of the name and all settings."""
        return digest(self.name, self.values())


@dataclass(frozen=True)
class Score:
    """A figure that a protocol computed."""

    metric: str  # such as "top-1"
    value: float
    n: int  # how many `of` it is computed from
    interval: Interval  # or why there is none
    of: str = "images"
    unit: str = "%"  # "%", "m", or "" for a plain number
    better: Literal["higher", "lower"] = "higher"
    dataset: str = ""  # "" means the protocol's own
    main: bool = True  # whether the report's table shows it; results.json has all
    published: str = ""  # name of the published figure that it is compared with, such as "top-1"
