"""`features.pooled` of every native family is transformers' `pooler_output`, or another vector for a stated reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.coverage.transformers import tiny_model
from tests.helpers import relative_error
from vitbackbone import load_backbone
from vitbackbone.checkpoints.huggingface.config import MODEL_TYPES
from vitbackbone.networks.transformers.input import feed_of
from vitbackbone.networks.transformers.towers import config_of, find_towers

LIMIT = 1e-5


def cls(model: Any, out: Any) -> Tensor:
    return out.last_hidden_state[:, 0]


def projected(model: Any, out: Any) -> Tensor:
    return model.visual_projection(out.pooler_output)


# Where transformers has a vector and another is pooled: the reason, and what is pooled
TANH = "the tanh layer is transformers' own: the authors read CLS, and most published weights lack the layer"
SHARED = "beside a text tower, the vector is the one in the space of texts, `get_image_features`"
OTHERS: dict[str, tuple[str, Callable[[Any, Any], Tensor]]] = {
    "vit": (TANH, cls),
    "deit": (TANH, cls),
    "dpt": (TANH, cls),
    "clip": (SHARED, projected),
    "metaclip_2": (SHARED, projected),
    "aimv2": (SHARED, projected),
}
# Where transformers has no vector of an image. What is pooled then is held by the cases of `tests/parity`
PATCHES = {"qwen2_vl", "qwen2_vl_vision", "qwen2_5_vl", "qwen2_5_vl_vision", "qwen3_vl", "qwen3_vl_vision"}
NONE = {
    *("vit_mae", "ijepa", "git_vision_model", "sam", "sam_vision_model", "sam_hq", "sam_hq_vision_model"),
    *("sam3_vit_model", "vit_msn", "data2vec-vision", "radio", "idefics2_vision", "idefics3_vision", "smolvlm_vision"),
    *("vitdet", "sam2_hiera_det_model", "vitpose_backbone", "internvl_vision", "pixtral", "gemma4_vision"),
    *("llama4_vision_model", "kimi_k25_vision"),
    *PATCHES,  # `pooler_output` is the merged patches, for the language model
}
OWN_TESTS = {"mllama_vision_model", "vjepa2", "intern_vit_6b", "moonvit"}  # tiles, clips, no class in transformers
QUICK = {"vit", "beit", "siglip", "clip"}
TYPES = [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
    for name in MODEL_TYPES
    if name not in OWN_TESTS
]


@pytest.mark.parametrize("model_type", TYPES)
def test_pooled_is_the_poolers_output(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path)
    ours = load_backbone(tmp_path)
    images = torch.rand(2, ours.channels[0], *ours.spec.image_size, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (ours.preprocess.mean, ours.preprocess.std))
    with torch.inference_mode():
        pooled = ours(images).pooled
        found = []
        for path in find_towers(model):
            encoder = model.get_submodule(path)
            feed = feed_of(encoder, config_of(model, path), model_type, ours.spec.image_size)
            # an encoder that normalises by itself takes pixels from 0 to 1
            found += [encoder(**feed(each)) for each in (images, images * std + mean)]
        vectors = [each for each in map(_vector, found) if each is not None]
        if model_type in OTHERS:
            assert vectors
            wanted = [OTHERS[model_type][1](model, out) for out in found]
            assert min(relative_error(pooled, each) for each in wanted) <= LIMIT
        elif model_type in NONE:
            assert not vectors
        else:
            assert min(relative_error(pooled, each) for each in vectors) <= LIMIT


def _vector(out: Any) -> Tensor | None:
    """Return the vector of each image that an encoder returns, or None if it returns none."""
    pooled = getattr(out, "pooler_output", None)
    if not isinstance(pooled, Tensor) or pooled.shape[0] != 2:
        return None
    return pooled.flatten(1) if pooled.ndim == 4 else pooled if pooled.ndim == 2 else None
