"""Every comparison with an upstream: cases of images at several sizes, and whole models that were saved.

The parity tests take theirs from the lists' own files, and `make parity` measures all of them.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.checkpoints.composites import COMPOSITES, composite_error
from tests.helpers import relative_error
from tests.oracles.cases import TIMM_CASES, Case, images
from tests.oracles.clips import CLIP_CASES
from tests.oracles.language_towers import LANGUAGE_CASES
from tests.oracles.level_networks import LEVEL_CASES
from tests.oracles.satellites import SATELLITE_CASES
from tests.oracles.siglino import SIGLINO_CASES
from tests.oracles.small_timm import SMALL_CASES
from tests.oracles.tiled_towers import TILE_CASES
from tests.oracles.transformers_models import HF_CASES
from tests.oracles.transformers_towers import TOWER_CASES
from tests.oracles.whole_models import MODELS, whole_error
from tests.text.models import CASES as TEXTS_OF_TRANSFORMERS
from tests.text.models import TEXTS, text_vectors
from tests.text.open_clip_models import OPEN_CLIP
from vitbackbone import load_backbone, load_text

IMAGE_CASES: list[Case] = [
    *TIMM_CASES,
    *HF_CASES,
    *TOWER_CASES,
    *SMALL_CASES,
    *LANGUAGE_CASES,
    *CLIP_CASES,
    *LEVEL_CASES,
    *TILE_CASES,
    *SATELLITE_CASES,
    *SIGLINO_CASES,
]


@dataclass(frozen=True)
class SavedCase:
    """A model of an upstream, whose tower is loaded from the folder that it was saved into.

    `error` saves one into a folder, and returns the error of each part.
    """

    family: str
    upstream: str
    name: str
    error: Callable[[Path], dict[str, float]]


def _texts_of_transformers(name: str, folder: Path) -> dict[str, float]:
    case = TEXTS_OF_TRANSFORMERS[name]
    model, tokenizer = case.save(folder)
    with torch.inference_mode():
        return {"text": relative_error(load_text(folder)(TEXTS), text_vectors(case, model, tokenizer))}


def _open_clip(name: str, folder: Path) -> dict[str, float]:
    model, tokenizer = OPEN_CLIP[name].save(folder)
    backbone = load_backbone(folder)
    x = images(backbone.spec.image_size)
    with torch.inference_mode():
        vectors = model.encode_text(tokenizer(list(TEXTS)), normalize=False)
        return {
            "pooled": relative_error(backbone(x).pooled, model.encode_image(x, normalize=False)),
            "text": relative_error(load_text(folder)(TEXTS), vectors),
        }


def _rows(
    family: str, upstream: str, names: Iterable[str], error: Callable[[str, Path], dict[str, float]]
) -> list[SavedCase]:
    return [SavedCase(family, upstream, name, functools.partial(error, name)) for name in names]


SAVED_CASES: list[SavedCase] = [
    *_rows("text towers", "transformers", TEXTS_OF_TRANSFORMERS, _texts_of_transformers),
    *_rows("text towers and their image towers", "open_clip", OPEN_CLIP, _open_clip),
    *_rows(
        "towers inside other models",
        "transformers",
        COMPOSITES,
        lambda name, folder: {"patches": composite_error(name, folder)},
    ),
    *_rows(
        "towers inside larger models",
        "transformers",
        MODELS,
        lambda name, folder: {"patches": whole_error(name, folder)},
    ),
]
