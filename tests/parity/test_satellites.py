"""Prithvi, SatMAE, DOFA, Clay and TerraMind equal their papers' formulas, with every parameter randomised."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.helpers import randomise, relative_error
from tests.oracles.cases import LIMIT, Case, check_parity, images
from tests.oracles.satellites import SATELLITE_CASES, Clay, Dofa, load, save
from vitbackbone import load_backbone

PRITHVI, DOFA = SATELLITE_CASES[0], SATELLITE_CASES[-1]
SENTINEL_2 = (0.665, 0.56, 0.49, 0.705, 0.74, 0.783, 0.842, 1.61, 2.19)


@pytest.mark.parametrize("case", SATELLITE_CASES, ids=lambda case: case.name)
def test_images_are_upstreams(case: Case, tmp_path: Path) -> None:
    check_parity(case, tmp_path)


@pytest.mark.parametrize("frames", [1, 3])
def test_prithvi_takes_any_number_of_dates(frames: int, tmp_path: Path) -> None:
    model, size = PRITHVI.model(), (61, 43)
    PRITHVI.save(model, tmp_path)
    ours = PRITHVI.load(tmp_path, "native")
    x = torch.randn(2, frames, 6, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens, _ = model(F.pad(x, (0, 5, 0, 3)))
        got = ours(x)
    assert got.patches.shape == (2, 48, frames, 8, 6)
    assert relative_error(got.tokens, tokens[:, 1:]) <= LIMIT
    assert relative_error(got.cls, tokens[:, 0]) <= LIMIT
    one = ours(x[:, 0])
    assert relative_error(one.patches, ours(x[:, :1]).patches[:, :, 0]) <= LIMIT


@pytest.mark.parametrize("wavelengths", [SENTINEL_2, (0.8,)], ids=["nine", "one"])
def test_dofa_makes_kernels_of_wavelengths(wavelengths: tuple[float, ...], tmp_path: Path) -> None:
    model, x = randomise(Dofa(wavelengths)), images((40, 88), 2, len(wavelengths))
    save("", model, tmp_path)
    ours = load(DOFA.name, tmp_path, "native", wavelengths=wavelengths)
    with torch.inference_mode():
        assert relative_error(ours(x).tokens, model(x)[0][:, 1:]) <= LIMIT
    assert ours.spec.in_chans == len(wavelengths) == len(ours.preprocess.mean)


@pytest.mark.parametrize(
    ("name", "wavelengths", "metres"),
    [("clay_v1_5.naip", (0.65, 0.56, 0.48, 0.842), 1.0), ("clay_v1_5.landsat_c2l2", (0.65, 0.8), 30.0)],
)
def test_clay_takes_the_bands_of_any_satellite(
    name: str, wavelengths: tuple[float, ...], metres: float, tmp_path: Path
) -> None:
    model, x = randomise(Clay(wavelengths, metres)), images((40, 88), 2, len(wavelengths))
    save("model.encoder.", model, tmp_path)
    ours = load(name, tmp_path, "native", wavelengths=wavelengths)
    with torch.inference_mode():
        assert relative_error(ours(x).tokens, model(x)[0][:, 1:]) <= LIMIT


def test_the_groups_of_satmae_are_steps_of_the_map(tmp_path: Path) -> None:
    case = SATELLITE_CASES[2]
    case.save(case.model(), tmp_path)
    ours = case.load(tmp_path, "native")
    features = ours(images((40, 32), 2, 10))
    assert features.patches.shape == (2, 48, 3, 5, 4)
    assert features.step(2).patches.shape == (2, 48, 5, 4)
    with pytest.raises(ValueError, match="no kernels to inflate"):
        load(case.name, tmp_path, "native", in_chans=3)


def test_wavelengths_belong_to_dofa() -> None:
    with pytest.raises(ValueError, match="a kernel of its own for each channel"):
        load_backbone("vit_tiny_patch16_224.augreg_in21k", weights="random", wavelengths=(0.6,))
    with pytest.raises(ValueError, match="want micrometres"):
        load_backbone(DOFA.name, weights="random", wavelengths=(665.0,))
