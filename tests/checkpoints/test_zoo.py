"""The table of names: timm's preprocessing, licence, source and configuration for each."""

import pytest
import timm
import torch

from tests.checkpoints.sampling import covering, first_of_each
from vitbackbone import (
    ViT,
    list_backbones,
)
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.rules import bind, convert
from vitbackbone.checkpoints.zoo import ADAPTED, ZOO

TIMM_NAMES = [name for name, entry in ZOO.items() if entry.source.startswith("timm/")]


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_preprocessing_source_and_licence_are_those_of_timm(name: str) -> None:
    theirs, ours = timm.get_pretrained_cfg(name), ZOO[name]
    preprocess = ours.preprocess
    assert (3, *preprocess.image_size) == theirs.input_size == (3, *ours.config.image_size)
    assert (preprocess.mean, preprocess.std) == (theirs.mean, theirs.std)
    assert (preprocess.crop_pct, preprocess.crop_mode) == (theirs.crop_pct, theirs.crop_mode)
    assert preprocess.interpolation == theirs.interpolation
    assert ours.source == theirs.hf_hub_id
    assert (ours.num_classes or ours.config.projection_dim) == theirs.num_classes  # CLIP's projection is timm's head
    assert ours.licence == LICENCES.get(name, theirs.license)


LICENCES = {  # as the authors say: of the first, timm says nothing, and Apple changed its own since timm's copies
    "vit_intern300m_patch14_448.ogvl_2pt5": "mit",
    **{name: "apple-amlr" for name in TIMM_NAMES if name.startswith("aimv2_")},
}


def kind(name: str) -> tuple[object, ...]:
    """Return the properties of an entry that a sample of the zoo covers."""
    entry = ZOO[name]
    config = entry.config
    return entry.format, config.mlp, config.qkv_bias, config.pool, config.num_registers, entry.source.split("/")[0]


@pytest.mark.parametrize(
    "name",
    covering(
        [name for name in TIMM_NAMES if "7b" not in name],
        quick=first_of_each([name for name in TIMM_NAMES if ZOO[name].config.depth <= 12], kind),
    ),
)
def test_the_configuration_is_timms(name: str) -> None:
    """Every tensor of timm's model has a place and the right shape; the models are on the meta device."""
    with torch.device("meta"):
        theirs = timm.create_model(name.split(".")[0], pretrained=False, num_classes=ZOO[name].num_classes)
        ours = ViT(ZOO[name].config)
    if ZOO[name].config.projection_dim:
        with torch.device("meta"):
            theirs.reset_classifier(ZOO[name].config.projection_dim)
    convert(theirs.state_dict(), bind(FORMATS[ZOO[name].format], ours.config), ours.state_dict())
    assert theirs.blocks[0].norm1.eps == ZOO[name].config.norm_eps
    quick = "openai" in name and "quickgelu" not in name  # timm runs the exact GELU there; the weights want the other
    activation = "QuickGELU" if quick else type(theirs.blocks[0].mlp.act).__name__
    assert activation == ACTIVATIONS[ZOO[name].config.mlp]


ACTIVATIONS = {"gelu": "GELU", "gelu_tanh": "GELUTanh", "quick_gelu": "QuickGELU", "swiglu": "SiLU"}


@pytest.mark.parametrize(
    "name",
    covering(
        [name for name in ZOO if name != "openvla"],
        quick=first_of_each([name for name in ZOO if name != "openvla"], kind),
    ),
)
def test_every_entry_builds_and_has_a_known_format(name: str) -> None:
    with torch.device("meta"):
        vit = ViT(ZOO[name].config)
    assert vit.spec.dim == ZOO[name].config.dim
    assert ZOO[name].format in FORMATS


def test_names_are_listed_by_pattern() -> None:
    assert list_backbones() == [*ZOO, *ADAPTED]
    found = list_backbones("*reg4_dinov2*")
    assert len(found) == 4
    assert all("reg4" in name for name in found)
