"""Explain a difference from a published figure: which settings differ, and what each is known to move."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from vitbackbone.evaluation.settings import plain

UNMEASURED = "effect unmeasured"


@dataclass(frozen=True)
class Gap:
    """A setting that differs from the one of a published figure."""

    key: str
    here: Any
    paper: Any
    effect: str

    def __str__(self) -> str:
        return f"{self.key} is {_shown(self.here)}, the paper has {_shown(self.paper)}: {self.effect}"


def explain(protocol: str, here: Mapping[str, Any], paper: Mapping[str, Any]) -> list[Gap]:
    """List the settings that differ from the paper's, with their known effects."""
    absent = "nothing"
    return [
        Gap(key, here.get(key, absent), paper.get(key, absent), effect_of(protocol, key, here.get(key), paper.get(key)))
        for key in dict.fromkeys([*here, *paper])
        if plain(here.get(key)) != plain(paper.get(key))
    ]


def effect_of(protocol: str, key: str, here: Any, paper: Any) -> str:
    """Return the known effect of a setting with its source, or a sentence that nobody has measured it."""
    for each in _file():
        about = protocol in each["protocols"] or "*" in each["protocols"]
        values = all(plain(value) == each[side] for side, value in (("here", here), ("paper", paper)) if side in each)
        if about and key in each["keys"] and values:
            return f"{each['effect']} ({each['source']})"
    return UNMEASURED


@cache
def _file() -> list[dict[str, Any]]:
    text = files("vitbackbone.evaluation").joinpath("gaps.toml").read_text(encoding="utf-8")
    return list(tomllib.loads(text)["gap"])


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        parts = [*map(_shown, value)]
        return ", ".join(parts if len(parts) <= 6 else [*parts[:2], "...", parts[-1]]) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
