"""The published figures, read from `published.toml`."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A published figure."""

    model: str
    protocol: str
    variant: str  # variant of the protocol that its source used
    dataset: str
    metric: str
    value: float
    source: str


@cache
def _file() -> Mapping[str, Any]:
    return tomllib.loads(files("vitbackbone.evaluation").joinpath("published.toml").read_text(encoding="utf-8"))


@cache
def figures() -> tuple[Figure, ...]:
    """Return all published figures, in the order of the file."""
    found = []
    for table in _file()["table"]:
        about = {key: table[key] for key in ("protocol", "variant", "dataset", "metric", "source")}
        found += [Figure(model=model, value=float(value), **about) for model, value in table["figures"].items()]
    return tuple(found)


def published_model(name: str) -> str | None:
    """Return the model of the papers that a backbone's name means, or None. The longest known name decides."""
    known = [(part, model) for model, parts in _file()["models"].items() for part in parts]
    fitting = [(len(part), model) for part, model in known if part.lower() in name.lower()]
    return max(fitting)[1] if fitting else None


def find_figure(backbone: str, protocol: str, variant: str, dataset: str, metric: str) -> Figure | None:
    """Return the published figure of a backbone for a protocol: of the same variant if there is one, else of another.

    `backbone`: its name, as it was loaded.
    """
    model = published_model(backbone)
    fitting = [
        each
        for each in figures()
        if (each.model, each.protocol, each.dataset, each.metric) == (model, protocol, dataset, metric)
    ]
    same = [each for each in fitting if each.variant == variant]
    return next(iter([*same, *fitting]), None)
