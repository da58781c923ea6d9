"""ImageFeatures: the features of the backbone, and scikit-learn's contract, most of which `check_estimator` skips for
inputs that are not tables."""

import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import SkipTestWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted

from heads import KnnProbe, LinearProbe
from tests.helpers import photo, randomise, save_photo, tiny_vit
from vitbackbone import ImageFeatures, ViT, ViTConfig
from vitbackbone import sklearn as estimator
from vitbackbone.contract.features import pool_mean

PHOTOS = [photo(40 + i, 52 - i, seed=i) for i in range(5)]


@pytest.fixture
def loads(monkeypatch):
    """`load_backbone` gives a tiny model; the names it was asked for."""
    names: list[str] = []

    def load_backbone(name: str) -> ViT:
        names.append(name)
        return tiny_vit(seed=len(name))

    monkeypatch.setattr("vitbackbone.checkpoints.load_backbone", load_backbone)
    estimator._load.cache_clear()
    yield names
    estimator._load.cache_clear()


def reference(backbone: ViT, layer: int = -1, resolution: int | None = None) -> dict[str, np.ndarray]:
    """Each pooling of PHOTOS, image by image."""
    rows: dict[str, list[np.ndarray]] = {"cls": [], "mean": [], "cls+mean": [], "pooled": []}
    with torch.inference_mode():
        for image in PHOTOS:
            inputs = backbone.preprocess(image, resolution)[None]
            features = backbone.forward_layers(inputs, [layer], norm=backbone.spec.has_norm)[0]
            mean = pool_mean(features)
            rows["mean"].append(mean[0].numpy())
            rows["pooled"].append(features.pooled[0].numpy())
            if features.cls is not None:
                rows["cls"].append(features.cls[0].numpy())
                rows["cls+mean"].append(torch.cat([features.cls, mean], dim=1)[0].numpy())
    return {name: np.array(row) for name, row in rows.items()}


# ---- what comes out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean", "pooled"])
@pytest.mark.parametrize(("layer", "resolution"), [(-1, None), (0, None), (-2, 48), (2, (24, 40))])
def test_features_are_those_of_the_backbone(pooling, layer, resolution):
    backbone = tiny_vit()
    images = ImageFeatures(backbone, pooling, layer, resolution, batch_size=2)
    features = images.transform(PHOTOS)
    assert features.dtype == np.float32
    assert features.shape == (5, 32 if pooling == "cls+mean" else 16)
    np.testing.assert_allclose(features, reference(backbone, layer, resolution)[pooling], rtol=1e-4, atol=1e-5)


def test_a_backbone_without_cls_or_without_a_final_norm():
    backbone = tiny_vit(cls=False, pool="mean", final_norm=False, fc_norm=True)
    for pooling in ("mean", "pooled"):
        features = ImageFeatures(backbone, pooling).transform(PHOTOS)
        np.testing.assert_allclose(features, reference(backbone)[pooling], rtol=1e-4, atol=1e-5)
    assert np.abs(reference(backbone)["mean"] - reference(backbone)["pooled"]).max() > 0.1
    with pytest.raises(ValueError, match="no CLS token"):
        ImageFeatures(backbone).transform(PHOTOS)


def test_batches_are_irrelevant():
    backbone = tiny_vit()
    expected = ImageFeatures(backbone, batch_size=5).transform(PHOTOS)
    for batch_size in (1, 3, 64):
        features = ImageFeatures(backbone, batch_size=batch_size).transform(PHOTOS)
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_half_precision_weights_give_float32():
    assert ImageFeatures(tiny_vit().bfloat16()).transform(PHOTOS).dtype == np.float32


def test_training_mode_is_suspended_and_given_back():
    backbone = tiny_vit(drop_path=0.9).train()
    backbone.blocks[1].eval()
    modes = {name: module.training for name, module in backbone.named_modules()}
    images = ImageFeatures(backbone)
    np.testing.assert_array_equal(images.transform(PHOTOS), ImageFeatures(tiny_vit()).transform(PHOTOS))
    with pytest.raises(ValueError, match="image 0"):
        images.transform(["missing.png"])
    assert {name: module.training for name, module in backbone.named_modules()} == modes
    assert backbone.training
    assert not backbone.blocks[1].training


# ---- what goes in --------------------------------------------------------------------------------------------------


def test_every_kind_of_image(tmp_path):
    backbone = tiny_vit()
    images = ImageFeatures(backbone)
    expected = images.transform(PHOTOS)
    paths = [tmp_path / f"{i} ü.png" for i in range(5)]
    for path, image in zip(paths, PHOTOS, strict=True):
        image.save(path)
    strings, arrays = [str(path) for path in paths], [np.array(image) for image in PHOTOS]
    mixed = [paths[0], strings[1], PHOTOS[2], arrays[3], paths[4]]
    several_sizes = np.empty(5, dtype=object)
    several_sizes[:] = arrays
    for X in (paths, tuple(paths), strings, np.array(strings), np.array(paths), pd.Series(strings, index=range(5, 10))):
        np.testing.assert_array_equal(images.transform(X), expected)
    for X in (arrays, mixed, several_sizes):
        np.testing.assert_array_equal(images.transform(X), expected)


def test_one_array_of_images():
    images = ImageFeatures(tiny_vit())
    colour = np.stack([np.array(photo(36, 30, seed=i)) for i in range(4)])  # (N, H, W, 3)
    np.testing.assert_array_equal(images.transform(colour), images.transform([Image.fromarray(a) for a in colour]))
    grey = colour[..., 0]  # (N, H, W)
    np.testing.assert_array_equal(images.transform(grey), images.transform(grey[..., None].repeat(3, axis=-1)))
    assert not np.allclose(images.transform(grey), images.transform(colour))


@pytest.mark.parametrize("method", ["fit", "transform"])
def test_what_is_no_sequence_of_images(tmp_path, method):
    apply = getattr(ImageFeatures(tiny_vit()), method)
    path = save_photo(tmp_path / "a.png")
    for X in (path, str(path), photo(8, 8), 3, iter([path])):
        with pytest.raises(ValueError, match=r"X is one .*; want a sequence of paths, PIL images, bytes, uint8 arrays"):
            apply(X)
    for X in (np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8), np.uint8)):
        with pytest.raises(ValueError, match=r"X is an array of .*; want a sequence"):
            apply(X)
    for X in ([], np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="X is empty"):
            apply(X)


def test_an_unreadable_image_is_named(tmp_path):
    images = ImageFeatures(tiny_vit(), batch_size=2)
    good = save_photo(tmp_path / "good.png")
    truncated, empty, text = tmp_path / "truncated.png", tmp_path / "empty.jpg", tmp_path / "text.jpg"
    truncated.write_bytes(good.read_bytes()[:200])
    empty.touch()
    text.write_text("not an image")
    for bad in (truncated, empty, text, tmp_path / "missing.png", str(text)):
        with pytest.raises(ValueError, match=rf"image 3 \(.*{str(bad).rsplit('/', 1)[-1]}\) cannot be read: ."):
            images.transform([good, good, good, bad])
    for array, why in [
        (np.zeros((8, 8, 3)), "float64; want uint8"),
        (np.zeros((8, 8, 4), np.uint8), r"\(8, 8, 4\); want"),
        (np.zeros((0, 8), np.uint8), r"\(0, 8\); want"),
    ]:
        with pytest.raises(ValueError, match=rf"image 1 cannot be read: .*{why}"):
            images.transform([good, array])


def test_a_decompression_bomb_is_named(tmp_path, monkeypatch):
    path = save_photo(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"image 0 \(.*bomb.png\) cannot be read: .*decompression bombs"):
        ImageFeatures(tiny_vit()).transform([path])


@pytest.mark.parametrize("method", ["fit", "transform"])
def test_wrong_parameters(method):
    for parameters, match in [
        ({"pooling": "max"}, "pooling='max'; want one of cls, mean, cls\\+mean, 4cls\\+mean, pooled, tokens"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=match):
            getattr(ImageFeatures(tiny_vit(), **parameters), method)(PHOTOS)
    with pytest.raises(ValueError, match="want block indices from -3 to 2"):
        ImageFeatures(tiny_vit(), layer=3).transform(PHOTOS)


# ---- named backbones -----------------------------------------------------------------------------------------------


def test_a_named_backbone_loads_on_first_use_and_once(loads):
    images = ImageFeatures("small").fit(PHOTOS)
    clones = [clone(images).set_params(pooling=pooling) for pooling in ("cls", "mean")]
    assert loads == []
    for other in clones:
        other.transform(PHOTOS)
    np.testing.assert_array_equal(images.transform(PHOTOS), clones[0].transform(PHOTOS))
    assert loads == ["small"]
    changed = images.set_params(model="a larger one").transform(PHOTOS)
    assert loads == ["small", "a larger one"]
    assert not np.allclose(changed, clones[0].transform(PHOTOS))


def test_a_pickle_holds_no_weights(loads):
    images = ImageFeatures("small", pooling="mean")
    expected = images.fit_transform(PHOTOS)
    pickled = pickle.dumps(images)
    assert len(pickled) < 1000
    restored = pickle.loads(pickled)  # noqa: S301  # our own bytes
    assert restored.get_params() == images.get_params()
    np.testing.assert_array_equal(restored.transform(PHOTOS), expected)


def test_nano_is_the_default():
    assert ImageFeatures().get_params() == {
        "model": "nano",
        "pooling": "cls",
        "layer": -1,
        "resolution": None,
        "batch_size": 32,
        "device": "cpu",
        "max_pixels": None,
    }


# ---- scikit-learn --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")  # the checks on tables
def test_check_estimator():
    with pytest.warns(SkipTestWarning, match="requires input"):
        check_estimator(ImageFeatures())


def test_stateless_and_idempotent():
    images = ImageFeatures(tiny_vit())
    before = dict(vars(images))
    check_is_fitted(images)
    unfitted = images.transform(PHOTOS)
    assert images.fit(PHOTOS, [0, 1, 0, 1, 0]) is images
    np.testing.assert_array_equal(images.transform(PHOTOS), unfitted)
    np.testing.assert_array_equal(images.fit_transform(PHOTOS), unfitted)
    np.testing.assert_allclose(images.transform(PHOTOS[1:3]), unfitted[1:3], rtol=1e-4, atol=1e-5)
    assert vars(images) == before


def test_parameters_are_stored_as_given_and_cloned():
    parameters = {"model": "x", "pooling": "mean", "layer": 3, "resolution": (32, 64), "batch_size": 7, "device": "y"}
    parameters["max_pixels"] = 100
    images = ImageFeatures(**parameters)
    assert vars(images) == parameters == clone(images).get_params()
    assert images.set_params(layer=1).layer == 1
    copy = clone(ImageFeatures(tiny_vit()))
    assert copy.model is not None
    np.testing.assert_array_equal(copy.transform(PHOTOS), ImageFeatures(tiny_vit()).transform(PHOTOS))


def test_names_and_pandas_output():
    images = ImageFeatures(tiny_vit(), pooling="cls+mean")
    names = images.get_feature_names_out()
    assert names.dtype == object
    assert names.tolist() == [f"cls{i}" for i in range(16)] + [f"mean{i}" for i in range(16)]
    expected = images.transform(PHOTOS)
    frame = images.set_output(transform="pandas").transform(PHOTOS)
    assert isinstance(frame, pd.DataFrame)
    assert frame.columns.tolist() == names.tolist()
    np.testing.assert_array_equal(frame.to_numpy(), expected)
    labels = pd.Series(PHOTOS, index=[3, 1, 4, 15, 9])
    assert images.transform(labels).index.tolist() == [3, 1, 4, 15, 9]


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean", "4cls+mean", "pooled"])
@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("projection", [0, 20])
def test_there_are_as_many_names_as_columns(pooling, layer, projection):
    config = ViTConfig(
        image_size=(32, 32), patch_size=8, dim=16, depth=5, num_heads=2, mlp_dim=32, projection_dim=projection or None
    )
    images = ImageFeatures(ViT(config), pooling=pooling, layer=layer).set_output(transform="pandas")
    frame = images.transform(PHOTOS)
    assert frame.columns.tolist() == images.get_feature_names_out().tolist()
    assert len(set(frame.columns)) == frame.shape[1]
    assert frame.columns[0] == {"4cls+mean": f"layer{1 + layer + 1}.cls0"}.get(pooling, f"{pooling.split('+')[0]}0")


@pytest.fixture
def squares() -> tuple[list[np.ndarray], np.ndarray]:
    """Dark and light images."""
    rng = np.random.default_rng(0)
    y = np.arange(24) % 2
    images = [np.uint8(60 + 120 * label + rng.integers(0, 40, (20, 24, 3))) for label in y]
    return images, np.array(["dark", "light"])[y]


@pytest.mark.parametrize("probe", [LinearProbe(), KnnProbe(k=3)], ids=["linear", "knn"])
def test_pipeline_with_a_probe(squares, probe):
    X, y = squares
    pipeline = make_pipeline(ImageFeatures(tiny_vit(), pooling="mean"), probe)
    assert pipeline.fit(X[:12], y[:12]).score(X[12:], y[12:]) == 1
    assert cross_val_score(pipeline, X, y, cv=3).tolist() == [1, 1, 1]
    pipeline.set_output(transform="pandas").fit(X, y)
    assert pipeline[-1].feature_names_in_[:2].tolist() == ["mean0", "mean1"]
    assert pipeline.score(X, y) == 1


def test_grid_search_over_layers(squares, loads):
    X, y = squares
    pipeline = make_pipeline(ImageFeatures("small"), LinearProbe())
    grid = {"imagefeatures__layer": [0, 1, -1], "imagefeatures__pooling": ["cls", "mean"]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, y)
    assert search.best_score_ == 1
    assert len(set(map(str, search.cv_results_["params"]))) == 6
    assert loads == ["small"]


def test_the_package_imports_without_scikit_learn():
    code = "import vitbackbone, sys; assert 'sklearn' not in sys.modules; vitbackbone.ImageFeatures()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tiny_backbone_at_other_settings_of_its_own():
    """The preprocessing is the backbone's: another mean moves the features."""
    config = ViTConfig(image_size=(32, 32), patch_size=8, dim=16, depth=2, num_heads=2, mlp_dim=32)
    plain = randomise(ViT(config))
    other = randomise(ViT(config, preprocess=plain.preprocess.__class__((32, 32), mean=(0.9, 0.1, 0.5))))
    assert not np.allclose(ImageFeatures(plain).transform(PHOTOS), ImageFeatures(other).transform(PHOTOS))
