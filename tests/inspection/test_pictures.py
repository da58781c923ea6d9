"""Pictures: PCA, rollout, similarity and overlays against plain numpy, and the files that `show` writes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from tests.helpers import photo, tiny_vit
from vitbackbone import Attention, ViT
from vitbackbone.inspection import pictures as view


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    """(D, h, w) of skewed values with a spectrum, so that components and their signs are well defined."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).exp()
    return values * torch.linspace(3, 0.5, shape[0])[:, None, None]


def random_attention(heads: int, num_prefix: int, grid: tuple[int, int], seed: int) -> Attention:
    n = num_prefix + grid[0] * grid[1]
    logits = torch.randn(2, heads, n, n, generator=torch.Generator().manual_seed(seed))
    return Attention((2 * logits).softmax(dim=-1), num_prefix, grid)


def same_picture(a: Image.Image, b: Image.Image, tolerance: int = 1) -> bool:
    return a.size == b.size and int(np.abs(np.int32(np.asarray(a)) - np.int32(np.asarray(b))).max()) <= tolerance


# PCA


def test_pca_equals_scikit_learns_up_to_sign() -> None:
    x = maps(12, 5, 7)
    (rgb,) = view.pca_rgb([x])
    assert rgb.shape == (5, 7, 3)
    ours = np.log(rgb / (1 - rgb.astype(np.float64))).reshape(35, 3)
    theirs = PCA(3, whiten=True).fit_transform(x.flatten(1).T.double().numpy()) * np.sqrt(35 / 34)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=1e-3, atol=1e-3)
    assert ((ours**3).mean(axis=0) > 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_picture_depends_on_the_patches_and_not_on_the_names_of_the_channels(seed: int) -> None:
    x = maps(12, 5, 7, seed=seed)
    (picture,) = view.pca_rgb([x])
    rotation = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[
        0
    ]
    for same in (x, -x, x[torch.randperm(12)], 7 * x + 3, torch.einsum("ij,jhw->ihw", rotation, x.double())):
        np.testing.assert_allclose(view.pca_rgb([same])[0], picture, atol=1e-4)
    np.testing.assert_allclose(view.pca_rgb([x.flip(1, 2)])[0], picture[::-1, ::-1], atol=1e-5)


def test_the_few_patches_that_stand_out_are_bright() -> None:
    x = 0.01 * maps(8, 6, 6)
    x[:, 2, 3] += 5
    for features in (x, -x):
        (rgb,) = view.pca_rgb([features])
        assert rgb[2, 3, 0] > 0.99
        assert np.delete(rgb[..., 0], 2 * 6 + 3).max() < 0.5


@pytest.mark.parametrize("seed", range(4))
def test_pca_is_not_saturated(seed: int) -> None:
    """Under 1 % of the values of normal features lie within a twentieth of black or full."""
    (rgb,) = view.pca_rgb([torch.randn(32, 40, 40, generator=torch.Generator().manual_seed(seed))])
    assert ((rgb < 0.05) | (rgb > 0.95)).mean() < 0.01
    assert rgb.std() > 0.15  # and it is not grey either


def test_images_share_one_basis() -> None:
    a, b = maps(12, 5, 7), maps(12, 3, 4, seed=1)
    b[:, 0, 0] = a[:, 4, 6]
    first, second = view.pca_rgb([a, b])
    assert (first.shape, second.shape) == ((5, 7, 3), (3, 4, 3))
    np.testing.assert_allclose(first[4, 6], second[0, 0], atol=1e-6)
    (joint,) = view.pca_rgb([torch.cat([a.flatten(1), b.flatten(1)], dim=1)[:, None]])
    np.testing.assert_allclose(np.concatenate([first.reshape(-1, 3), second.reshape(-1, 3)]), joint[0], atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 1, 1), (12, 1, 2), (12, 1, 3), (2, 4, 4), (1, 4, 4)])
def test_components_that_do_not_exist_are_grey(shape: tuple[int, int, int]) -> None:
    (rgb,) = view.pca_rgb([maps(*shape)])
    exist = min(3, shape[0], shape[1] * shape[2] - 1)
    assert np.isfinite(rgb).all()
    assert (rgb[..., exist:] == 0.5).all()
    assert (np.ptp(rgb[..., :exist], axis=(0, 1)) > 0.1).all()


def test_constant_features_are_grey() -> None:
    assert (view.pca_rgb([torch.full((12, 4, 4), 0.1) + torch.arange(12.0)[:, None, None]])[0] == 0.5).all()


@pytest.mark.parametrize(
    "wrong", [[], [torch.ones(4, 2, 2), torch.ones(5, 2, 2)], [torch.full((4, 2, 2), float("nan"))]], ids=str
)
def test_pca_refuses(wrong: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"maps"):
        view.pca_rgb(wrong)


# Rollout


def plain_rollout(attentions: Sequence[Attention], image: int) -> np.ndarray:
    """Abnar & Zuidema (2020), section 3, as a loop."""
    n = attentions[0].weights.shape[-1]
    rolled = np.eye(n)
    for attention in attentions:
        mixed = np.zeros((n, n))
        for head in attention.weights[image].double().numpy():
            mixed += head / len(attention.weights[image])
        mixed = 0.5 * mixed + 0.5 * np.eye(n)
        for row in mixed:
            row /= row.sum()
        rolled = mixed @ rolled
    return rolled


def test_rollout_equals_the_plain_loop_and_its_rows_sum_to_1() -> None:
    attentions = [random_attention(3, 2, (2, 3), seed) for seed in range(4)]
    rolled = view.rollout(attentions)
    for image in range(2):
        np.testing.assert_allclose(rolled[image].numpy(), plain_rollout(attentions, image), rtol=1e-5)
    torch.testing.assert_close(rolled.sum(-1), torch.ones(2, 8))
    assert not torch.allclose(rolled, view.rollout(attentions[::-1]), atol=1e-3)
    with pytest.raises(ValueError, match="no layers"):
        view.rollout([])


def test_cls_map_reads_cls_or_the_mean_patch() -> None:
    attention = random_attention(3, 2, (2, 3), seed=0)
    torch.testing.assert_close(view.cls_map(attention.weights, 2, (2, 3)), attention.cls_to_patches)
    mean = view.cls_map(attention.weights, 2, (2, 3), has_cls=False)
    torch.testing.assert_close(mean[1, 2, 1, 0], attention.weights[1, 2, 2:, 2 + 3].mean())
    with pytest.raises(ValueError, match="has_cls=False"):
        view.cls_map(attention.weights, 0, (2, 4))


# Overlay


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 4), (3, 2)])
@pytest.mark.parametrize("size", [(32, 40), (27, 33)], ids=["whole", "padded"])
def test_the_patch_that_cls_looks_at_lights_up_and_nothing_else(size: tuple[int, int], row: int, column: int) -> None:
    num_prefix, (h, w) = 4, (4, 5)  # CLS and three registers
    weights = torch.zeros(1, 1, num_prefix + h * w, num_prefix + h * w)
    weights[..., num_prefix + row * w + column] = 1
    attention = Attention(weights, num_prefix, (h, w))
    picture = photo(*size)
    cold = np.asarray(view.overlay(picture, torch.zeros(h, w), patch=8))
    lit = np.zeros(size, dtype=bool)
    lit[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = True
    for seen in (attention.cls_to_patches[0, 0], view.cls_map(view.rollout([attention]), num_prefix, (h, w))[0]):
        flat = np.asarray(view.overlay(picture, seen, patch=8, smooth=False))
        assert flat.shape == (*size, 3)
        np.testing.assert_array_equal((flat != cold).any(axis=-1), lit)
        smooth = np.asarray(view.overlay(Image.new("RGB", picture.size), seen, patch=8)).sum(axis=-1)
        assert lit.ravel()[smooth.argmax()]


@pytest.mark.parametrize("exposure", [1, 0.3, 0.1])
def test_a_photo_stays_visible_under_a_map_however_dark_it_is(exposure: float) -> None:
    bright = photo(64, 80)
    dark = bright.point(lambda value: value * exposure)
    heat = torch.zeros(8, 10)
    heat[2, 3] = 1
    seen = np.asarray(view.overlay(dark, heat, patch=8).convert("L"), dtype=float)[32:]  # where it is cold
    there = np.asarray(bright.convert("L"), dtype=float)[32:]
    assert np.ptp(np.percentile(seen, (5, 95))) > 100
    assert np.corrcoef(seen.ravel(), there.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_photo_of_one_colour_has_a_map(value: int) -> None:
    heat = torch.eye(4)
    seen = np.asarray(view.overlay(Image.new("RGB", (32, 32), (value,) * 3), heat, patch=8, smooth=False))
    assert seen[4, 4].astype(int).sum() > seen[4, 28].astype(int).sum() + 100


def test_overlay_refuses_a_photo_of_another_grid() -> None:
    with pytest.raises(ValueError, match="4 x 5 patches"):
        view.overlay(photo(32, 48), torch.zeros(4, 5), patch=8)


# Similarity


def test_similarity_is_the_cosine_on_the_images_own_grid() -> None:
    backbone = tiny_vit(num_registers=2)
    with torch.inference_mode():
        features = backbone([torch.randn(3, 32, 56), torch.randn(3, 20, 24)])
    found = view.similarity(features, 1, 2, 1)
    assert found.shape == (3, 3)
    patches = features.patches[1].numpy()
    for i in range(3):
        for j in range(3):
            a, b = patches[:, 2, 1], patches[:, i, j]
            assert found[i, j].item() == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
    assert found[2, 1].item() == pytest.approx(1, abs=1e-5)
    with pytest.raises(IndexError, match="3 x 3 patches"):
        view.similarity(features, 1, 3, 0)


# show


NAMES = ["photo.png", "attention.png", "rollout.png", "pca.png", "overview.png"]
WIDE = photo(60, 100)


@pytest.fixture
def backbone() -> ViT:
    return tiny_vit(num_registers=3)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of the network's own pixels: quick to write, and comparable to what it was given."""
    monkeypatch.setattr(view, "PANEL", 1)


def read(folder: Path) -> dict[str, Image.Image]:
    return {path.stem: Image.open(path).convert("RGB") for path in folder.iterdir()}


def test_show_writes_pictures_of_the_whole_photo(backbone: ViT, tmp_path: Path) -> None:
    paths = view.show(backbone, WIDE, tmp_path / "new" / "folder", 48)
    assert paths == [tmp_path / "new" / "folder" / name for name in NAMES]
    pictures = read(tmp_path / "new" / "folder")
    assert pictures["photo"].size == pictures["rollout"].size == (480, 288)  # 6 x 10 patches of 48 px
    assert pictures["attention"].width > 2 * 480
    assert pictures["overview"].width > 4 * 480
    assert all(np.asarray(picture).std() > 5 for picture in pictures.values())
    for name in ("attention", "overview"):  # the legend, in the colours of the maps
        legend = np.asarray(pictures[name])[-48:].reshape(-1, 3).astype(int)
        for colour in ((0, 0, 0), (142, 53, 35), (227, 229, 148)):
            assert np.abs(legend - colour).sum(axis=1).min() < 30


def test_panels_of_every_size_have_a_legend() -> None:
    for width in [*range(1, 420), 479, 480, 485, 1023]:
        panel = Image.new("RGB", (width, 3), "white")
        bare, sheet = (view._panels([panel], [""], legend=legend) for legend in (False, True))
        legend = np.asarray(sheet)[bare.height :].reshape(-1, 3).astype(int)
        if width >= 340:  # as wide as the words and the colours
            for colour in ((0, 0, 0), (142, 53, 35), (227, 229, 148)):
                assert np.abs(legend - colour).sum(axis=1).min() < 30


@pytest.mark.parametrize("size", [(301, 207), (207, 301), (33, 47), (1, 1), (65, 9), (97, 101)], ids=str)
def test_show_draws_photos_of_odd_sizes(backbone: ViT, size: tuple[int, int], tmp_path: Path) -> None:
    for resolution in (16, 64):
        paths = view.show(backbone, photo(*size), tmp_path / str(resolution), resolution)
        assert all(np.asarray(Image.open(path)).size for path in paths)


@pytest.mark.usefixtures("small")
def test_show_draws_what_the_network_was_given(backbone: ViT, tmp_path: Path) -> None:
    given = []
    backbone.patch_embed.register_forward_hook(lambda module, inputs, output: given.append(inputs[0]))
    view.show(backbone, WIDE, tmp_path, 44)  # 44 x 73 pixels: 48 x 72 in whole patches
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.preprocess.mean, backbone.preprocess.std))
    assert given[0].shape == (1, 3, 48, 72)
    shown = torch.from_numpy(np.array(Image.open(tmp_path / "photo.png"))).permute(2, 0, 1)
    torch.testing.assert_close((given[0][0] * std + mean) * 255, shown.float(), atol=1e-2, rtol=0)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("layer", [-1, 0, 1])
@pytest.mark.parametrize("budget", [1, 2**29], ids=["a layer at a time", "all layers at once"])
def test_show_draws_the_layer_and_the_rollout_up_to_it(
    backbone: ViT, layer: int, budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "MAP_BYTES", budget)
    given = []
    backbone.patch_embed.register_forward_hook(lambda module, inputs, output: given.append(inputs[0]))
    view.show(backbone, WIDE, tmp_path, 48, layer)
    depth = layer % backbone.spec.depth + 1
    assert len(given) == 1 + (depth if budget == 1 else 1)

    with torch.inference_mode():
        attentions = backbone.attention(given[0], range(depth))
        features = backbone.forward_layers(given[0], [layer])[0]
    pictures = read(tmp_path)
    shown = pictures["photo"]
    heads = attentions[-1].cls_to_patches[0]
    rolled = view.cls_map(view.rollout(attentions), 4, (6, 10))[0]
    assert same_picture(pictures["rollout"], view.overlay(shown, rolled.sqrt(), 8))

    def panels(sheet: Image.Image) -> list[Image.Image]:
        gap, header = 4, 19  # of `_panels` at 80 x 48 pixels
        return [sheet.crop((x, header, x + 80, header + 48)) for x in range(gap, sheet.width, 80 + gap)]

    for head, panel in zip(heads, panels(pictures["attention"]), strict=True):
        assert same_picture(panel, view.overlay(shown, head.sqrt(), 8))
    first, mean, third, colours = panels(pictures["overview"])
    assert same_picture(first, shown)
    assert same_picture(mean, view.overlay(shown, heads.mean(0).sqrt(), 8))
    assert same_picture(third, pictures["rollout"])
    assert same_picture(panels(pictures["pca"])[0], colours)
    rgb = view.pca_rgb([features.patches[0]])[0] * 255
    centres = np.asarray(colours, dtype=np.float32).reshape(6, 8, 10, 8, 3)[:, 3:5, :, 3:5].mean(axis=(1, 3))
    assert np.abs(centres - rgb).mean() < 8  # bicubic passes near each patch's colour at its centre
    assert np.abs(centres - rgb[::-1]).mean() > 30


@pytest.mark.usefixtures("small")
def test_show_restores_the_mode_of_every_module_and_draws_without_dropping_paths(tmp_path: Path) -> None:
    backbone = tiny_vit(num_registers=3, drop_path=0.9)
    view.show(backbone, WIDE, tmp_path / "eval", 48)
    backbone.train()
    backbone.blocks[1].eval()
    before = [module.training for module in backbone.modules()]
    view.show(backbone, WIDE, tmp_path / "train", 48)
    assert [module.training for module in backbone.modules()] == before
    for name in NAMES:
        assert (tmp_path / "eval" / name).read_bytes() == (tmp_path / "train" / name).read_bytes()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "fields",
    [
        {"cls": False, "pool": "mean"},
        {"cls": False, "pool": "mean", "num_registers": 2},
        {"final_norm": False},
        {"indivisible": "refuse"},
        {"num_heads": 8},
    ],
    ids=str,
)
def test_show_draws_every_kind_of_backbone(fields: dict[str, object], tmp_path: Path) -> None:
    backbone = tiny_vit(**fields)
    view.show(backbone, photo(70, 43), tmp_path)  # 52 x 32 pixels: 6.5 x 4 patches
    pictures = read(tmp_path)
    assert pictures["photo"].size == pictures["rollout"].size == (32, 48)
    columns, rows = min(4, backbone.spec.num_heads), -(-backbone.spec.num_heads // 4)
    assert pictures["attention"].size == (4 + columns * 36, rows * (19 + 48 + 4) + 19)  # and the legend
    assert all(np.asarray(picture).std() > 5 for picture in pictures.values())


def test_show_refuses_grids_whose_attention_would_not_fit(backbone: ViT, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"512 x 520 pixels give 4164 tokens.*lower resolution"):
        view.show(backbone, photo(64, 65), tmp_path / "out", 512)
    assert not (tmp_path / "out").exists()
