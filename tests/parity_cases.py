"""Every comparison with an upstream: the images' cases in one list, and the text towers' in another.

The parity tests take theirs from the lists' own files, and `make parity` measures all of them.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.helpers import relative_error
from tests.language_towers import LANGUAGE_CASES
from tests.level_networks import LEVEL_CASES
from tests.oracles import CASES, Case
from tests.satellites import SATELLITE_CASES
from tests.small_timm import SMALL_CASES
from tests.text.models import CASES as TEXTS_OF_TRANSFORMERS
from tests.text.models import TEXTS, text_vectors
from tests.text.open_clip_models import OPEN_CLIP
from tests.tiled_towers import TILE_CASES
from tests.towers import TOWER_CASES
from tests.vision_clips import CLIP_CASES
from vitbackbone import load_text

IMAGE_CASES: list[Case] = [
    *CASES,
    *TOWER_CASES,
    *SMALL_CASES,
    *LANGUAGE_CASES,
    *CLIP_CASES,
    *LEVEL_CASES,
    *TILE_CASES,
    *SATELLITE_CASES,
]


@dataclass(frozen=True)
class TextCase:
    """A text tower of an upstream. `error` saves one into a folder, and compares the vectors of texts."""

    family: str
    upstream: str
    name: str
    error: Callable[[Path], float]


def _transformers(name: str, folder: Path) -> float:
    case = TEXTS_OF_TRANSFORMERS[name]
    model, tokenizer = case.save(folder)
    with torch.inference_mode():
        return relative_error(load_text(folder)(TEXTS), text_vectors(case, model, tokenizer))


def _open_clip(name: str, folder: Path) -> float:
    model, tokenizer = OPEN_CLIP[name].save(folder)
    with torch.inference_mode():
        return relative_error(load_text(folder)(TEXTS), model.encode_text(tokenizer(list(TEXTS))))


TEXT_CASES: list[TextCase] = [
    *(
        TextCase("text towers", "transformers", name, functools.partial(_transformers, name))
        for name in TEXTS_OF_TRANSFORMERS
    ),
    *(TextCase("text towers", "open_clip", name, functools.partial(_open_clip, name)) for name in OPEN_CLIP),
]
