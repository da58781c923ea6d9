"""Runs of a protocol on its tiny dataset, and helpers to write each protocol's formula again."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.evaluation import dense_data
from vitbackbone.evaluation import evaluate, find_protocol

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def pixels(image: Image.Image, std=STD) -> torch.Tensor:
    array = (np.asarray(image.convert("RGB"), dtype=np.float64) / 255 - MEAN) / std
    return torch.from_numpy(array).permute(2, 0, 1)[None].float()


@torch.no_grad()
def features(backbone, images, layers=(-1,), norm=True):
    return backbone.forward_layers(images, list(layers), norm)


def scores(results, name=None):
    found = {each.metric: each.value for each in results[0].scores}
    return found if name is None else found[name]


def start(protocol, backbone, tmp_path, variant=None, **settings):
    """Make the protocol's dataset and run it."""
    dataset = find_protocol(protocol, variant).datasets[0]
    maker = getattr(dense_data, dataset.replace("-", "_"))
    folder = maker(tmp_path / dataset)
    named = {key.replace("__", "."): value for key, value in settings.items()}
    results = evaluate(
        protocol, backbone, {dataset: folder}, tmp_path / "out", variant=variant, settings=named, progress=False
    )
    return results, folder


def cosine(a, b):
    return float(F.normalize(a.double(), dim=0) @ F.normalize(b.double(), dim=0))


def trapezoids(ranking, ok, junk):
    ap, seen, place = 0.0, 0, 0
    for item in ranking:
        if item in ok:
            ap += ((seen / place if place else 1.0) + (seen + 1) / (place + 1)) / 2
            seen += 1
        place += item not in junk
    return ap / len(ok)


SLOW = pytest.mark.slow
