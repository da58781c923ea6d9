"""Position tables: the fixed sinusoids and the resampling policies."""

import math

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from tests.helpers import relative_error, tiny_vit
from vitbackbone import Resampling, Rotary
from vitbackbone.model.positions import embedding
from vitbackbone.model.positions.resampling import resample, resampling_matrices
from vitbackbone.model.positions.sincos import sincos1d, sincos2d
from vitbackbone.runtime.routes import share

TABLE = torch.randn(6 * 6, 5, generator=torch.Generator().manual_seed(0))


def as_image(table: torch.Tensor, h: int) -> torch.Tensor:
    return table.T.unflatten(1, (h, -1))[None]


def test_1d_sinusoids_are_those_of_the_original_transformer() -> None:
    table = sincos1d((3, 5), 8)
    for position in range(15):
        for i in range(4):
            angle = position / 10000 ** (2 * i / 8)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_2d_sinusoids_are_those_of_mae() -> None:
    """transformers builds the row's half first; the tables that MAE published have the column's first."""
    rows, columns = build_2d_sinusoidal_position_embedding(7, 5, 16).chunk(2, dim=1)
    assert relative_error(sincos2d((7, 5), 16), torch.cat([columns, rows], dim=1)) < 1e-6


@pytest.mark.parametrize("new", [(9, 9), (4, 4), (3, 12), (12, 3), (1, 1), (6, 7)])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [False, True])
def test_resampling_by_size(new: tuple[int, int], mode: str, antialias: bool) -> None:
    got = resample(TABLE, (6, 6), new, Resampling(mode, antialias))
    want = F.interpolate(as_image(TABLE, 6), size=new, mode=mode, antialias=antialias, align_corners=False)
    assert torch.equal(as_image(got, new[0]), want)
    rows, columns = resampling_matrices((6, 6), new, Resampling(mode, antialias), TABLE.device)  # what a graph holds
    assert relative_error((rows @ as_image(TABLE, 6) @ columns.T), want) < 1e-6


def test_equal_counts_are_not_equal_grids() -> None:
    """36 patches either way, yet 6 x 6 is not 4 x 9: a table is resampled whenever the grid differs."""
    assert torch.equal(resample(TABLE, (6, 6), (6, 6), Resampling()), TABLE)
    assert not torch.allclose(resample(TABLE, (6, 6), (4, 9), Resampling()), TABLE)


@pytest.mark.parametrize("new", [(7, 5), (3, 3), (11, 6)])
def test_the_offset_moves_the_sample_points_as_dino_does(new: tuple[int, int]) -> None:
    """The bicubic formula written out (a = -0.75, edges repeated) with the step M / (n + 0.1) of DINO and DINOv2."""

    def kernel(x: float, a: float = -0.75) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    def weights(m: int, n: int) -> torch.Tensor:
        matrix = torch.zeros(n, m, dtype=torch.float64)
        for i in range(n):
            centre = (i + 0.5) * m / (n + 0.1) - 0.5
            for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
                matrix[i, min(max(j, 0), m - 1)] += kernel(centre - j)
        return matrix

    image = as_image(TABLE, 6)[0].double()
    want = torch.einsum("ih,dhw,jw->dij", weights(6, new[0]), image, weights(6, new[1]))
    got = resample(TABLE, (6, 6), new, Resampling(offset=0.1))
    assert relative_error(as_image(got, new[0])[0].double(), want) < 1e-5


@pytest.mark.parametrize("grid", range(1, 80))
def test_an_offset_never_loses_a_row(grid: int) -> None:
    for trained in (14, 16, 37):
        table = torch.zeros(trained * trained, 1)
        assert len(resample(table, (trained, trained), (grid, 2), Resampling(offset=0.1))) == 2 * grid


def test_an_offset_and_antialias_are_refused_together() -> None:
    with pytest.raises(ValueError, match="goes with antialias=False"):
        Resampling(antialias=True, offset=0.1)


def test_positions_follow_whatever_table_there_is() -> None:
    """This holds for tables changed in place, through `.data`, or replaced for one call."""
    positions = tiny_vit().pos_embed
    with torch.inference_mode():
        first = positions((5, 7))
        positions.table.mul_(2)
        assert relative_error(positions((5, 7)), 2 * first) < 1e-6
        positions.table.data.mul_(2)
        assert relative_error(positions((5, 7)), 4 * first) < 1e-6
        for i in range(8):
            other = {"table": torch.randn(16, 16)}
            got = torch.func.functional_call(positions, other, ((5, 7),))
            assert torch.equal(got, resample(other["table"], (4, 4), (5, 7), positions.resampling)), i
    assert positions((5, 7)).requires_grad


def test_what_stays_is_resampled_once_for_each_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[object] = []
    monkeypatch.setattr(embedding, "resample", lambda *args: grids.append(args[2]) or resample(*args))
    vit = tiny_vit()
    fast = share(vit)
    for grid in ((5, 7), (7, 5), (5, 7), (4, 4), (7, 5)):
        assert torch.equal(fast.pos_embed(grid), vit.pos_embed(grid))
    assert [grids.count(grid) for grid in ((5, 7), (7, 5), (4, 4))] == [3, 3, 2]  # of which the plain one's are 2, 2, 1
    with torch.no_grad():
        vit.pos_embed.table.add_(1)
    assert torch.equal(fast.pos_embed((5, 7)), vit.pos_embed((5, 7)))
    for side in range(1, 60):
        fast.pos_embed((side, 3))
    assert len(fast.pos_embed.tables) == embedding.GRIDS


def test_a_forward_of_shapes_alone_leaves_nothing_behind() -> None:
    vit = tiny_vit(position="none", rotary=Rotary(100.0, "centred", "halves"))
    x = torch.randn(1, 3, 56, 72)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        vit(torch.empty(1, 3, 56, 72))
    assert type(vit(x).patches) is torch.Tensor


def test_a_model_used_in_inference_can_be_trained_afterwards() -> None:
    vit = tiny_vit()
    with torch.inference_mode():
        vit(torch.randn(1, 3, 40, 40))
    for parameter in vit.pos_embed.parameters():
        parameter.requires_grad_(False)
    vit(torch.randn(1, 3, 40, 40)).pooled.sum().backward()
    assert vit.blocks[0].attn.qkv.weight.grad is not None


@pytest.mark.parametrize("how", [Resampling(), Resampling(antialias=True)])
@pytest.mark.parametrize("new", [(6, 1), (1, 6), (3, 1), (17, 1), (1, 1)])
def test_a_grid_one_patch_wide_has_positions_of_its_rows(how: Resampling, new: tuple[int, int]) -> None:
    """One axis after the other, each on an image that is several pixels wide."""
    table = torch.randn(5 * 5, 3)
    got = resample(table, (5, 5), new, how).view(*new, 3)
    rows = resample(table, (5, 5), (new[0], 5), how).view(new[0], 5, 3)
    both = resample(rows.transpose(0, 1).reshape(-1, 3), (5, new[0]), (new[1], new[0]), how)
    assert torch.allclose(got, both.view(new[1], new[0], 3).transpose(0, 1), atol=1e-5)
