"""Images, limits and small networks of timm for the tests of exports."""

from collections.abc import Mapping

import timm
import torch
from torch import Tensor, nn

from tests.helpers import randomise
from vitbackbone import Preprocess, ViT, ViTConfig
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.rules import HEADS, convert

LIMIT = 1e-5
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}


def images(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def timm_model(name: str, **settings: object) -> nn.Module:
    return randomise(timm.create_model(name, pretrained=False, **{**SMALL, **settings}))


def from_timm(model: nn.Module, layout: str, config: ViTConfig, preprocess: Preprocess | None = None) -> ViT:
    vit = ViT(config, preprocess)
    parameters = convert(model.state_dict(), FORMATS[layout], vit.state_dict())
    vit.load_state_dict({key: value for key, value in parameters.items() if not key.startswith(HEADS)})
    return vit.eval()
