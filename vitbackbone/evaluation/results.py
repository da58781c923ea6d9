"""`results.json`: every figure with its settings, weights, versions, and the published figure beside it."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

from vitbackbone.evaluation.datasets import Check
from vitbackbone.evaluation.gaps import explain
from vitbackbone.evaluation.protocol import Protocol, Score
from vitbackbone.evaluation.protocols import find_protocol
from vitbackbone.evaluation.published import Figure, find_figure
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.settings import plain
from vitbackbone.files import Record, publish_text, read_json

RESULTS = "results.json"
SCHEMA = 1
LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pillow")


class Published(Record):
    """A published figure beside one of ours."""

    value: float
    model: str
    variant: str
    source: str


class Figures(Record):
    """A figure, as `results.json` holds it."""

    metric: str
    value: float
    n: int
    of: str
    unit: str
    better: str
    interval: tuple[float, float] | None
    method: str  # how the interval is computed, or why there is none
    dataset: str
    main: bool
    published: Published | None = None
    difference: float | None = None
    gaps: tuple[str, ...] = ()  # what differs from the published figure's settings


class Result(Record):
    """A protocol's run on one dataset, as `results.json` holds it."""

    protocol: str
    variant: str
    dataset: str
    title: str
    model: str
    fingerprint: str
    settings: dict[str, Any]
    hash: str  # of the settings
    limit: int | None
    counts: dict[str, dict[str, int]]  # of each dataset
    official: bool  # whether the whole dataset was counted
    scores: tuple[Figures, ...]
    facts: dict[str, Any]
    notes: tuple[str, ...]
    unreadable: tuple[str, ...]
    heads: dict[str, str]
    versions: dict[str, str]
    seconds: float

    @property
    def key(self) -> tuple[Any, ...]:
        """The name that no other result in the file has."""
        return self.protocol, self.variant, self.dataset, self.hash, self.limit, self.fingerprint

    def value(self, metric: str | None = None) -> float:
        """Return a figure by its metric, by default the first main one. Raises `KeyError` if there is none."""
        found = [each for each in self.scores if (each.main if metric is None else each.metric == metric)]
        if not found:
            raise KeyError(f"{self.protocol} has no {metric}; it has {', '.join(each.metric for each in self.scores)}")
        return found[0].value


def result_key(run: Run) -> tuple[Any, ...]:
    """Return the `Result.key` of a run."""
    protocol = run.protocol
    return protocol.name, protocol.variant, run.dataset, protocol.hash(), run.limit, run.fingerprint


class _File(Record):
    schema_version: int
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Results:
    """The results of an output folder."""

    results: tuple[Result, ...] = field(default_factory=tuple)

    def __iter__(self) -> Any:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, at: int | str) -> Result:
        """Return a result by its place, or by the name of its protocol. Raises `KeyError` if there is none."""
        if isinstance(at, int):
            return self.results[at]
        found = [each for each in self.results if each.protocol == at]
        if not found:
            raise KeyError(f"no result of {at}; there are {', '.join(each.protocol for each in self.results)}")
        return found[0]

    def __str__(self) -> str:
        from vitbackbone.evaluation.report import markdown

        return markdown(self)

    def with_result(self, result: Result) -> "Results":
        """Return the results with one added, in place of an older one of the same run."""
        if result.key in [each.key for each in self.results]:
            return Results(tuple(result if each.key == result.key else each for each in self.results))
        return Results((*self.results, result))

    def write(self, out: Path) -> None:
        """Write `results.json`."""
        content = {"schema_version": SCHEMA, "results": [each.model_dump() for each in self.results]}
        publish_text(out / RESULTS, json.dumps(content, indent=1) + "\n")


def read_results(out: str | PathLike[str]) -> Results:
    """Read `results.json` of an output folder; empty if there is none yet.

    Raises `ValueError` if the file is damaged or of another version.
    """
    file = Path(out) / RESULTS
    if not file.exists():
        return Results()
    found = read_json(file, _File)
    if found.schema_version != SCHEMA:
        raise ValueError(f"{file} has version {found.schema_version}; this program reads {SCHEMA}")
    return Results(found.results)


def make_result(run: Run, scores: Sequence[Score], checks: Mapping[str, Check], seconds: float) -> Result:
    """Put together the result of a run. A part of a dataset is not compared with published figures.

    `checks`: the counts of each dataset that it read, by name.
    """
    protocol = run.protocol
    official = all(each.layout.official and not each.differing for each in checks.values())
    whole = official and run.limit is None
    return Result(
        protocol=protocol.name,
        variant=protocol.variant,
        dataset=run.dataset,
        title=run.layout.title,
        model=run.backbone.spec.name,
        fingerprint=run.fingerprint,
        settings=plain(protocol.values()),
        hash=protocol.hash(),
        limit=run.limit,
        counts={name: dict(each.counts) for name, each in checks.items()},
        official=official,
        scores=tuple(_figures(run, each, whole) for each in scores),
        facts=plain(run.facts),
        notes=tuple(run.notes),
        unreadable=tuple(run.unreadable),
        heads={name: str(folder.relative_to(run.out)) for name, folder in run.heads.items()},
        versions=versions(),
        seconds=seconds,
    )


def versions() -> dict[str, str]:
    """Return the versions of what computes a figure."""
    from vitbackbone import __version__

    own = {"vitbackbone": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in LIBRARIES}


def _figures(run: Run, score: Score, whole: bool) -> Figures:
    about = asdict(score) | {"interval": score.interval.bounds, "method": score.interval.method}
    metric = about.pop("published")
    dataset = score.dataset or run.dataset
    figure = None
    if whole and metric:
        protocol, wanted = run.protocol, "fine-s" if run.protocol.joined else run.dataset
        figure = find_figure(run.backbone.spec.name, protocol.name, protocol.variant, wanted, metric)
    if figure is None:
        return Figures(**about | {"dataset": dataset})
    gaps = [str(gap) for gap in explain(run.protocol.name, run.protocol.values(), _paper(run.protocol, figure))]
    published = Published(value=figure.value, model=figure.model, variant=figure.variant, source=figure.source)
    difference = round(score.value - figure.value, 6)
    return Figures(**about | {"dataset": dataset}, published=published, difference=difference, gaps=tuple(gaps))


def _paper(protocol: Protocol, figure: Figure) -> dict[str, Any]:
    """Return the settings of the variant that a published figure was computed with."""
    return find_protocol(protocol.name, figure.variant).values()
