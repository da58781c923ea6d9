"""The attentive probes against their formulas written out, on a task that needs attention, stored, live and on disk."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from torch import Tensor

from heads import (
    AttentiveProbe,
    KnnProbe,
    LinearProbe,
    attach,
    create_head,
    load_head,
    load_probe,
    report,
    save_head,
    save_probe,
)
from tests.helpers import photo, randomise, relative_error, save_photo, tiny_vit
from vitbackbone import FeatureStore, ImageFeatures
from vitbackbone.store import extract

QUICK = {"epochs": 3, "progress": False}
FIELDS = [{}, {"cls": False, "pool": "mean"}, {"patch_size": 14, "image_size": (28, 42), "num_heads": 4}]


# ---- the formulas, sample by sample and head by head ----------------------------------------------------------------


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attend with one query (D,) to the tokens of one sample (T, D)."""
    width, parts = len(q) // heads, []
    for h in range(heads):
        at = slice(h * width, (h + 1) * width)
        scores = k[:, at] @ q[at] / math.sqrt(width)
        weights = scores.exp() / scores.exp().sum()
        parts.append((weights[:, None] * v[:, at]).sum(0))
    return torch.cat(parts)


def vjepa(tokens: Tensor, p: dict[str, Tensor], heads: int) -> Tensor:
    """facebookresearch/jepa: CrossAttentionBlock without `proj`, then the linear layer. tokens: (T, D)."""
    dim = tokens.shape[1]
    x = layer_norm(tokens, p["norm1.weight"], p["norm1.bias"])
    k, v = (x @ p["kv.weight"][at].T + p["kv.bias"][at] for at in (slice(dim), slice(dim, None)))
    query = p["query"][0]
    query = query + attention(p["q.weight"] @ query + p["q.bias"], k, v, heads)
    hidden = p["fc1.weight"] @ layer_norm(query, p["norm2.weight"], p["norm2.bias"]) + p["fc1.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    query = query + p["fc2.weight"] @ hidden + p["fc2.bias"]
    return p["linear.weight"] @ query + p["linear.bias"]


def aim(tokens: Tensor, p: dict[str, Tensor], heads: int) -> Tensor:
    """apple/ml-aim: AttentionPoolingClassifier in eval mode. tokens: (T, D)."""
    x = (tokens - p["bn.running_mean"]) / (p["bn.running_var"] + 1e-6).sqrt()
    k, v = x @ p["k.weight"].T, x @ p["v.weight"].T
    return p["linear.weight"] @ torch.stack([attention(query, k, v, heads) for query in p["query"]]).mean(0)


@pytest.mark.parametrize(
    "fields", [{}, {"cls": False, "pool": "mean"}, {"patch_size": 14, "image_size": (28, 42), "num_heads": 4}], ids=str
)
@pytest.mark.parametrize("size", [(32, 32), (45, 23)])
def test_vjepa_is_its_formula_on_the_normed_patches_of_the_last_layer(fields, size):
    backbone = tiny_vit(**fields)
    head = randomise(create_head("vjepa_probe", backbone.spec, num_classes=5), seed=1)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        logits = attach(backbone, {"p": head})(images)["p"]
        patches = backbone.forward_layers(images, [-1], norm=True)[0].patches
    parameters = head.classifier.state_dict()
    expected = [vjepa(each.flatten(1).T, parameters, backbone.spec.num_heads) for each in patches]
    assert relative_error(logits, torch.stack(expected)) < 1e-5


@pytest.mark.parametrize(
    ("depth", "options", "layers"),
    [
        (3, {}, [0, 1, 2]),
        (8, {}, [2, 3, 4, 5, 6, 7]),
        (8, {"layers": [1, 4], "num_queries": 3, "num_heads": 8}, [1, 4]),
    ],
)
def test_aim_is_its_formula_on_the_mean_of_raw_layers(depth, options, layers):
    backbone = tiny_vit(depth=depth)
    head = randomise(create_head("aim_probe", backbone.spec, num_classes=5, **options), seed=1)
    images = torch.randn(2, 3, 40, 24)
    with torch.no_grad():
        logits = attach(backbone, {"p": head})(images)["p"]
        found = backbone.forward_layers(images, layers, norm=False)
    mean = sum(each.patches for each in found) / len(found)
    expected = [
        aim(each.flatten(1).T, head.classifier.state_dict(), options.get("num_heads", backbone.spec.num_heads))
        for each in mean
    ]
    assert relative_error(logits, torch.stack(expected)) < 1e-5
    assert {name for name, _ in head.classifier.named_parameters() if "bias" in name or "bn" in name} == set()


def test_aim_trains_with_the_statistics_of_batch_and_tokens():
    head = create_head("aim_probe", tiny_vit().spec, num_classes=2).train()
    tokens = torch.randn(3, 7, 16) * 4 + 2
    head.classifier(tokens, torch.ones(3, 7, dtype=torch.bool))
    torch.testing.assert_close(head.classifier.bn.running_mean, 0.1 * tokens.mean((0, 1)))


@pytest.mark.parametrize("name", ["vjepa_probe", "aim_probe"])
def test_padding_is_not_looked_at(name):
    backbone = tiny_vit()
    head = randomise(create_head(name, backbone.spec, num_classes=5))
    model = attach(backbone, {"p": head})
    images = [torch.randn(3, 32, 24), torch.randn(3, 16, 48)]
    with torch.no_grad():
        together = model(images)["p"]
        alone = torch.cat([model(image[None])["p"] for image in images])
    assert relative_error(together, alone) < 1e-5
    head.train()  # and padding is in no statistic
    parts = [head.classifier.bn.running_mean.clone()] if name == "aim_probe" else []
    model(images)
    if parts:
        (before,) = parts
        features = [backbone.forward_layers(images, [layer], norm=False)[0] for layer in range(3)]
        mean = sum(each.tokens for each in features) / 3
        valid = mean[features[0].valid.flatten(1)]
        torch.testing.assert_close(head.classifier.bn.running_mean, 0.9 * before + 0.1 * valid.mean(0))


def test_initialisation_is_upstreams():
    torch.manual_seed(0)
    spec = tiny_vit(dim=192, num_heads=3).spec
    vjepa_head, aim_head = (create_head(name, spec, num_classes=4).classifier for name in ("vjepa_probe", "aim_probe"))
    assert vjepa_head.query.std().item() == pytest.approx(0.02, rel=0.2)
    assert vjepa_head.kv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert vjepa_head.fc2.weight.std().item() == pytest.approx(0.02 / math.sqrt(2), rel=0.05)
    assert aim_head.query.std().item() == pytest.approx(0.02, rel=0.2)
    assert not vjepa_head.kv.bias.any()


def test_what_cannot_be_is_refused():
    spec = tiny_vit().spec
    with pytest.raises(ValueError, match="3 heads on tokens of width 16.*divides 16"):
        create_head("vjepa_probe", spec, num_classes=2, num_heads=3)
    pyramid = replace(spec, dims=(4, 8, 16), strides=(2, 4, 8))
    with pytest.raises(ValueError, match="layers of one width and stride"):
        create_head("aim_probe", pyramid, num_classes=2)
    assert create_head("aim_probe", pyramid, num_classes=2, layers=[-1]).layers == (2,)


@pytest.mark.parametrize("name", ["vjepa_probe", "aim_probe"])
def test_heads_are_saved(name, tmp_path: Path):
    backbone = tiny_vit()
    head = randomise(create_head(name, backbone.spec, num_classes=5, num_heads=4))
    save_head(head, tmp_path, backbone)
    images = torch.randn(2, 3, 32, 32)
    outputs = [attach(backbone, {"p": h})(images)["p"] for h in (head, load_head(tmp_path, backbone))]
    assert torch.equal(*outputs)


# ---- the classifier -------------------------------------------------------------------------------------------------


def hidden_token(n: int, tokens: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One token of each sample is marked, and says the class by its sign; another cancels it in the mean."""
    rng = np.random.default_rng(seed)
    X = rng.normal(0, 0.3, (n, tokens, 16)).astype(np.float32)
    y = np.arange(n) % 2
    for i in range(n):
        marked, other = rng.choice(tokens, 2, replace=False)
        X[i, marked, 0] += 4
        X[i, marked, 1] += 3 * (2 * y[i] - 1)
        X[i, other, 1] -= 3 * (2 * y[i] - 1)
    return X, np.array(["cat", "dog"])[y]


@pytest.mark.parametrize("form", ["vjepa", "aim"])
def test_finds_what_the_mean_of_patches_hides(form):
    X, y = hidden_token(200)
    test, truth = hidden_token(120, seed=1)
    probe = AttentiveProbe(form, num_heads=2, epochs=20, batch_size=16, lr=1e-2, progress=False).fit(X, y)
    assert probe.score(test, truth) > 0.9
    assert LinearProbe().fit(X.mean(1), y).score(test.mean(1), truth) < 0.75
    assert probe.classes_.tolist() == ["cat", "dog"]
    np.testing.assert_allclose(probe.predict_proba(test).sum(1), 1, rtol=1e-5)
    assert (probe.predict(test) == probe.classes_[probe.predict_proba(test).argmax(1)]).all()
    assert report(probe, test, truth).accuracy == probe.score(test, truth)


@pytest.mark.parametrize("form", ["vjepa", "aim"])
def test_is_decided_by_its_seed_alone(form):
    X, y = hidden_token(50)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = AttentiveProbe(form, **QUICK).fit(X, y).predict_proba(X)
    assert torch.equal(torch.get_rng_state(), before)  # and leaves that of others alone
    torch.manual_seed(6)
    np.random.seed(6)  # noqa: NPY002  # must not matter
    assert (AttentiveProbe(form, **QUICK).fit(X, y).predict_proba(X) == first).all()
    assert not (AttentiveProbe(form, random_state=1, **QUICK).fit(X, y).predict_proba(X) == first).all()


def test_the_first_step_is_the_recipes():
    """One batch of all, one epoch: AdamW from the seeded initialisation, with clipped gradients."""
    X, y = hidden_token(20)
    probe = AttentiveProbe("aim", epochs=1, batch_size=20, lr=0.01, weight_decay=0.1, progress=False).fit(X, y)
    spec = tiny_vit().spec
    torch.manual_seed(0)
    head = create_head("aim_probe", spec, num_classes=2, num_heads=1).classifier.train()
    loss = torch.nn.functional.cross_entropy(
        head(torch.from_numpy(X), torch.ones(20, 12, dtype=torch.bool)), torch.from_numpy((y == "dog").astype(int))
    )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
    for name, parameter in head.named_parameters():  # Adam's first step is lr * g / (|g| + eps)
        step = parameter.grad / (parameter.grad.abs() + 1e-8)
        expected = parameter.detach() * (1 - 0.01 * 0.1) - 0.01 * step
        torch.testing.assert_close(probe.module_.get_parameter(name), expected, rtol=1e-4, atol=1e-4)
    assert probe.loss_ == pytest.approx(loss.item(), rel=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(12):
        save_photo(folder / "ab"[i % 2] / f"{i:02}.png", 40, 40, seed=i)
    return folder


@pytest.mark.parametrize("form", ["vjepa", "aim"])
def test_stored_and_live_features_give_the_same_probe(form, folder, tmp_path):
    backbone = tiny_vit()
    store = extract(backbone, folder, tmp_path, tokens=("cls", "patches"), shard_size=5, batch_size=5, progress=False)
    stored = AttentiveProbe(form, **QUICK).fit(store.tokens, store.labels)
    paths = [str(folder / path) for path in store.paths]
    live = make_pipeline(ImageFeatures(backbone, pooling="tokens", batch_size=5), AttentiveProbe(form, **QUICK))
    live.fit(paths, store.labels)
    assert (stored.predict_proba(store.tokens) == live.predict_proba(paths)).all()
    # The probe was fitted as the classifier of the head, which goes on a backbone.
    options = {"layers": [-1]} if form == "aim" else {}
    head = create_head(f"{form}_probe", backbone.spec, num_classes=2, num_heads=1, **options).eval()
    head.classifier.load_state_dict(stored.module_.state_dict())
    with torch.no_grad():
        pixels = torch.stack([backbone.preprocess(path) for path in paths])
        features = backbone.forward_layers(pixels, [-1])
        np.testing.assert_allclose(head(*features).softmax(1), stored.predict_proba(store.tokens), atol=1e-5)


def test_tokens_of_a_store_are_those_of_features_read_when_needed(folder, tmp_path, monkeypatch):
    backbone = tiny_vit()
    store = extract(backbone, folder, tmp_path, tokens=("patches",), shard_size=5, keep_aspect=True, progress=False)
    image = backbone.preprocess(folder / store.paths[7], keep_aspect=True)
    with torch.no_grad():
        expected = backbone(image[None]).tokens[0]
    np.testing.assert_allclose(store.tokens[7], expected, atol=1e-5)
    read = []
    real = FeatureStore.patches
    monkeypatch.setattr(FeatureStore, "patches", lambda self, i: read.append(i) or real(self, i))
    chosen = store.tokens[np.arange(12) > 5]
    assert (len(chosen), len(chosen[2:]), len(chosen[[0, 3]])) == (6, 4, 2)
    assert read == []
    np.testing.assert_array_equal(chosen[2:][0], real(store, 8).reshape(16, -1).T)
    assert read == [8]
    assert len(list(store.tokens)) == 12
    without = extract(backbone, folder, tmp_path / "cls", tokens=("cls",), progress=False)
    with pytest.raises(ValueError, match="has no patches"):
        _ = without.tokens


def test_samples_may_differ_in_their_number_of_tokens():
    X, y = hidden_token(60)
    ragged = [x[: 6 + i % 7] for i, x in enumerate(X)]
    padded = [np.concatenate([x, x]) for x in ragged]
    probe = AttentiveProbe("vjepa", **QUICK).fit(ragged, y)
    together = probe.predict_proba(ragged)
    alone = np.concatenate([probe.predict_proba([x]) for x in ragged])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(probe.predict_proba(padded), together, atol=1e-5)  # a mean over attention


def test_keeps_the_habits_of_scikit_learn():
    options = {"form": "aim", "num_heads": 2, "epochs": 2, "batch_size": 8, "lr": 0.1, "weight_decay": 0.0}
    options |= {"random_state": 3, "device": "cpu", "progress": False}
    probe = AttentiveProbe(**options)
    assert probe.get_params() == options == clone(probe).get_params()
    X, y = hidden_token(48)
    assert cross_val_score(probe, X, y, cv=3).shape == (3,)
    search = GridSearchCV(AttentiveProbe(**QUICK), {"form": ["vjepa", "aim"]}, cv=2).fit(X, y)
    assert set(search.cv_results_["param_form"]) == {"vjepa", "aim"}
    assert probe.fit(X, y) is probe
    assert probe.n_features_in_ == 16


@pytest.mark.parametrize("form", ["vjepa", "aim"])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_goes_through_files(form, num_classes, tmp_path):
    X, _ = hidden_token(40)
    y = np.arange(40) % num_classes
    probe = AttentiveProbe(form, num_heads=4, **QUICK).fit(X, y)
    save_probe(probe, tmp_path, about={"a": 1})
    loaded, about = load_probe(tmp_path)
    assert about == {"a": 1}
    assert loaded.get_params() == probe.get_params()
    assert (loaded.predict_proba(X) == probe.predict_proba(X)).all()
    assert loaded.loss_ == probe.loss_


def test_wrong_use_says_what_to_do():
    X, y = hidden_token(20)
    probe = AttentiveProbe(**QUICK)
    spoilt = X.copy()
    spoilt[7, 3, 2] = np.nan
    for X_, y_, match in [
        (spoilt, y, "tokens of sample 7 hold NaN or inf; leave the sample out"),
        (X, np.where(np.arange(20) == 4, np.nan, 1.0), "1 of 20 labels are NaN or None, first at sample 4"),
        (X, [None, *y[1:]], "1 of 20 labels are NaN or None"),
        (X, np.linspace(0, 1, 20), "continuous"),
        (X, y[:-1], "inconsistent numbers of samples"),
        (X, ["cat"] * 20, "one class, 'cat'; want at least two"),
        (X[:, 0], y, r"sample 0 have shape \(16,\); want \(T, D\)"),
        (X[:, :0], y, "one row for each patch"),
        ([*X[:19], X[19, :, :4]], y, r"sample 19 have shape \(12, 4\); want \(T, 16\)"),
        (X[:0], y[:0], "no sample"),
        ("photos", y, "X is a str"),
    ]:
        with pytest.raises(ValueError, match=match):
            clone(probe).fit(X_, y_)
    for options, match in [
        ({"form": "mean"}, "unknown form 'mean'; want one of vjepa, aim"),
        ({"epochs": 0}, "epochs must be a positive integer, got 0"),
        ({"num_heads": 3}, "divides 16"),
        ({"lr": 1e30}, "use a lower lr"),
    ]:
        with pytest.raises(ValueError, match=match):
            clone(probe).set_params(**options).fit(X, y)
    with pytest.raises(ValueError, match="not fitted"):
        probe.predict(X)
    with pytest.raises(ValueError, match="fitted on tokens of width 16, got 8"):
        probe.fit(X, y).predict(X[:, :, :8])


def test_missing_features_and_labels_of_the_other_probes_are_named():
    X, y = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30.0) % 3
    for make in (LinearProbe, KnnProbe):
        spoilt = X.copy()
        spoilt[[5, 9], 1] = np.nan, np.inf
        with pytest.raises(ValueError, match="features of 2 of 30 samples hold NaN or inf, first sample 5; leave"):
            make().fit(spoilt, y)
        with pytest.raises(ValueError, match="features of 2 of 30 samples"):
            make().fit(X, y).predict(spoilt)
        with pytest.raises(ValueError, match="2 of 30 labels are NaN or None, first at sample 3; leave"):
            make().fit(X, np.where(np.isin(np.arange(30), [3, 8]), np.nan, y))


def test_lc_features_of_four_layers_live_and_stored(folder, tmp_path):
    backbone = tiny_vit(depth=6)
    images = ImageFeatures(backbone, pooling="4cls+mean")
    paths = sorted(map(str, folder.rglob("*.png")))
    pixels = torch.stack([backbone.preprocess(path) for path in paths])
    with torch.no_grad():
        layers = backbone.forward_layers(pixels, [2, 3, 4, 5])
    expected = torch.cat([*(each.cls for each in layers), layers[-1].patches.mean((2, 3))], dim=1).numpy()
    np.testing.assert_allclose(images.transform(paths), expected, atol=1e-5)
    names = images.get_feature_names_out()
    assert (names[0], names[16], names[64], len(names)) == ("layer2.cls0", "layer3.cls0", "mean0", 80)
    store = extract(backbone, folder, tmp_path, tokens=("cls", "patches"), layers=[-4, -3, -2, -1], progress=False)
    cls = [store.layer(i).cls for i in store.layers]
    mean = np.stack([tokens.mean(axis=0) for tokens in store.tokens])
    np.testing.assert_allclose(np.hstack([*cls, mean]), expected, atol=1e-5)
    with pytest.raises(ValueError, match="reads 4 layers, but .* has only 3 up to layer 2"):
        images.set_params(layer=2).transform(paths)
    with pytest.raises(ValueError, match="no columns to name"):
        ImageFeatures(backbone, pooling="tokens").get_feature_names_out()
    assert ImageFeatures(backbone, pooling="tokens").transform([photo(9, 9)]).shape == (1, 16, 16)
