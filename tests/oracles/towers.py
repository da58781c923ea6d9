"""Vision towers of transformers as oracles: a class, a small configuration of it, and how it runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import transformers
from torch import Tensor, nn

from tests.helpers import randomise
from tests.oracles.cases import Case, Outputs, Size
from tests.oracles.transformers_models import HF_SIZES
from vitbackbone import BackboneModule, load_backbone
from vitbackbone.checkpoints.zoo import Positions

Run = Callable[[nn.Module, Tensor, list[int]], Outputs]


@dataclass(frozen=True)
class Tower:
    """A class of transformers, `module.Class`, with a small configuration of it."""

    family: str
    model: str
    run: Run
    settings: dict[str, object] = field(default_factory=dict)
    sizes: tuple[Size, ...] = HF_SIZES
    multiple: int = 8


def random_tower(row: Tower) -> transformers.PreTrainedModel:
    """Return the model with every parameter random."""
    folder, kind = row.model.split(".")
    model_class = getattr(import_module(f"transformers.models.{folder}.modeling_{folder}"), kind)
    return randomise(model_class(model_class.config_class(**row.settings)))


def tower_case(name: str, row: Tower, make: Callable[[], nn.Module]) -> Case:
    """Return the case of a tower that `make` builds."""

    def load(folder: Path, positions: Positions) -> BackboneModule:
        return load_backbone(folder, positions=positions)

    def save(model: nn.Module, folder: Path) -> None:
        assert isinstance(model, transformers.PreTrainedModel)
        model.save_pretrained(folder)

    return Case(
        row.family, "transformers", name, row.sizes, make, load, save, row.run, policy="hf", multiple=row.multiple
    )
