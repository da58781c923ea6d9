"""Counts and descriptions of networks that take clips, groups of channels, or tiles."""

import pytest
import torch

from vitbackbone.checkpoints.zoo import ZOO
from vitbackbone.inspection import info, trace
from vitbackbone.inspection.costs import parameters
from vitbackbone.model import make_vit

TILES = "hf:meta-llama/Llama-3.2-11B-Vision-Instruct"


@pytest.mark.parametrize("name", ["vjepa2_1_vit_base_384", "prithvi_eo_v1_100", TILES])
def test_parameters_are_those_of_the_network(name: str) -> None:
    with torch.device("meta"):
        network = make_vit(ZOO[name].config)
    assert parameters(ZOO[name].config) == sum(each.numel() for each in network.parameters())


def test_tokens_count_groups_of_channels() -> None:
    name = "satmae_vit_base_patch8_96.fmow_sentinel"
    assert "12 x 12 x 3 groups = 432 patches + CLS = 433" in info(name, ZOO[name])
    assert "432 x 768" in trace(ZOO[name].config)


def test_a_trace_names_frames_and_positions_of_time() -> None:
    text = trace(ZOO["prithvi_eo_v1_100"].config)
    assert "of 1 frame" in text
    assert "3-D sine-cosine" in text


def test_costs_of_tiles_are_refused() -> None:
    with pytest.raises(ValueError, match="runs all tiles of an image"):
        info(TILES, ZOO[TILES])
