"""Whole runs of the classification protocols on tiny datasets, against the formulas written again."""

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from heads import Head, create_head, load_head
from tests.evaluation.classified import OTHERS, SMALL, WNIDS, make_imagenet, make_list
from tests.helpers import cases, tiny_vit
from vitbackbone import Preprocess, evaluate
from vitbackbone.evaluation import read_results
from vitbackbone.evaluation.augmentation import crop_box
from vitbackbone.evaluation.protocols.attentive import AdamW, Probing
from vitbackbone.evaluation.protocols.linear_mae import Lars, lengths
from vitbackbone.evaluation.subsets import few_of_each, few_of_the_rest, hold_out_share

LINEAR = {**SMALL, "fit.size": 32, "fit.steps": 6, "fit.batch": 8, "features.blocks": "1,2"}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    return make_imagenet(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def backbone():
    return tiny_vit()


def view(backbone, short: int = 36) -> Preprocess:
    mean, std = backbone.preprocess.mean, backbone.preprocess.std
    return Preprocess(image_size=(32, 32), crop_pct=32 / short, mean=mean, std=std)


def embed(backbone, root: Path, split: str, blocks: int = 1, short: int = 36) -> tuple[np.ndarray, np.ndarray]:
    """The normed CLS tokens of the last blocks and the mean of the patches, and the labels, by the backbone itself."""
    own = Preprocess(
        image_size=(32, 32), crop_pct=32 / short, mean=backbone.preprocess.mean, std=backbone.preprocess.std
    )
    rows, labels = [], []
    for label, wnid in enumerate(WNIDS):
        for file in sorted((root / split / wnid).iterdir()):
            with torch.no_grad():
                found = backbone.forward_layers(own(file)[None], range(-blocks, 0), norm=True)
            rows.append(
                torch.cat([*(each.cls for each in found), found[-1].patches.mean(dim=(2, 3))], dim=1)[0].numpy()
            )
            labels.append(label)
    return np.stack(rows), np.array(labels)


def accuracy(head: Head, backbone, imagenet: Path) -> float:
    """Classify the validation images one by one with a head of the package."""
    own, right = view(backbone), []
    for label, wnid in enumerate(WNIDS):
        for file in sorted((imagenet / "val" / wnid).iterdir()):
            with torch.no_grad():
                features = backbone.forward_layers(own(file)[None], head.layers, norm=head.needs.norm)
                right.append(int(head(*features).argmax()) == label)
    return 100 * np.mean(right)


def test_knn_votes_as_the_formula_says(imagenet, backbone, tmp_path) -> None:
    result = evaluate("knn", backbone, imagenet, tmp_path, settings={**SMALL, "fit.ks": "3,5"}, progress=False)["knn"]
    (X, y), (Q, truth) = (embed(backbone, imagenet, split) for split in ("train", "val"))
    dim = backbone.spec.dim
    X, Q = (each[:, :dim] / np.linalg.norm(each[:, :dim], axis=1, keepdims=True) for each in (X, Q))
    for k in (3, 5):
        right = []
        for query, label in zip(Q, truth, strict=True):
            near = np.argsort(-(X @ query))[:k]
            weights = np.exp((X @ query)[near] / 0.07)
            votes = [weights[y[near] == each].sum() for each in range(4)]
            right.append(int(np.argmax(votes)) == label)
        assert result.value(f"top-1 (k={k})") == pytest.approx(100 * np.mean(right), abs=1e-9)
    assert result.limit is None
    assert result.scores[0].published is None  # four classes are not ImageNet


def test_few_shots_draw_equal_numbers_of_each_class(imagenet, backbone, tmp_path) -> None:
    settings = {**SMALL, "fit.ks": "1", "fit.shots": 2, "fit.tries": 3}
    result = evaluate("knn-few-shot", backbone, imagenet, tmp_path, settings=settings, progress=False)[0]
    (X, y), (Q, truth) = (embed(backbone, imagenet, split) for split in ("train", "val"))
    dim, values = backbone.spec.dim, []
    X, Q = (each[:, :dim] / np.linalg.norm(each[:, :dim], axis=1, keepdims=True) for each in (X, Q))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        rows = [np.flatnonzero(y == c)[torch.randperm(6, generator=generator)[:2].numpy()] for c in range(4)]
        chosen = np.sort(np.concatenate(rows))
        values.append(100 * np.mean(y[chosen][(Q @ X[chosen].T).argmax(axis=1)] == truth))
    score = result.scores[0]
    assert score.value == pytest.approx(np.mean(values))
    assert score.interval[0] <= score.value <= score.interval[1]
    assert score.method == "95 % percentile bootstrap over tries and images, 200 draws"
    tries, spread = result.facts["tries of top-1 (k=1)"], np.std(values, ddof=1)
    assert tries == {"values": pytest.approx(values), "sample standard deviation": pytest.approx(spread)}
    assert f"top-1 (k=1) is the mean of 3 tries, with a sample standard deviation of {spread:.2f}" in result.notes


def test_logistic_regression_is_scikit_learns(imagenet, backbone, tmp_path) -> None:
    settings = {**SMALL, "view.short": 32, "fit.powers": "-2,2,3"}
    result = evaluate("logistic", backbone, imagenet, tmp_path, settings=settings, progress=False)[0]
    dim = backbone.spec.dim
    (X, y), (Q, truth) = (embed(backbone, imagenet, split, short=32) for split in ("train", "val"))
    X, Q = X[:, :dim].astype(np.float64), Q[:, :dim].astype(np.float64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).numpy()
    held = np.concatenate([order[y[order] == c][:1] for c in range(4)])
    kept = np.setdiff1d(np.arange(len(y)), held)
    models = {C: LogisticRegression(C=C, tol=1e-12, max_iter=1000) for C in (0.01, 1.0, 100.0)}
    found = {C: model.fit(X[kept], y[kept]).score(X[held], y[held]) for C, model in models.items()}
    best = max(found, key=found.get)
    assert result.facts["imagenet"]["C"] == pytest.approx(best)
    final = LogisticRegression(C=best, tol=1e-12, max_iter=1000).fit(X, y)
    assert result.value() == pytest.approx(100 * final.score(Q, truth))
    head = load_head(tmp_path / result.heads["logistic"], backbone)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = backbone(images)
        logits = head(features)
    theirs = torch.from_numpy(final.predict_proba(features.cls.double().numpy()))
    assert torch.allclose(logits.softmax(1).double(), theirs, atol=1e-4)


def test_all_linear_heads_train_as_each_would_alone() -> None:
    from vitbackbone.evaluation.linear_heads import LinearHeads, head_inputs

    inputs = head_inputs((1, 2), (False, True), [6, 6], 6)
    assert [each.width for each in inputs] == [6, 12, 12, 18]
    heads = LinearHeads(inputs, (0.1, 1.0), 5, steps=7, momentum=0.9, weight_decays=(0.0, 0.01))
    alone = []
    for index, (each, rate, decay) in enumerate(heads.names()):
        _, weight, bias = heads.one(index)
        linear = nn.Linear(each.width, 5)
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        optimizer = torch.optim.SGD(linear.parameters(), rate, momentum=0.9, weight_decay=decay)
        alone.append((each, linear, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)))
    for number in range(7):
        x, y = torch.randn(9, 18), torch.randint(0, 5, (9,))
        heads.step(x, y, number)
        for each, linear, optimizer, schedule in alone:
            cls = x[:, 12 - 6 * each.blocks : 12]
            loss = F.cross_entropy(linear(torch.cat([cls, x[:, 12:]], dim=1) if each.mean else cls), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    for index, (_, linear, _, _) in enumerate(alone):
        _, weight, bias = heads.one(index)
        assert torch.allclose(weight, linear.weight, atol=1e-6)
        assert torch.allclose(bias, linear.bias, atol=1e-6)


@pytest.mark.parametrize("shots", [2, 0.3])
def test_few_shots_are_drawn_behind_the_split(shots) -> None:
    """dinov3/eval/data.py: the training images are shuffled, split by class, and drawn from in that order."""
    labels = np.repeat(np.arange(5), [9, 7, 12, 1, 4])
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    by_class = {label: [row for row in rows if labels[row] == label] for label in range(5)}
    held = {row for own in by_class.values() if len(own) > 1 for row in own[: max(1, int(0.2 * len(own)))]}
    rest = {label: [row for row in own if row not in held] for label, own in by_class.items()}
    generator, drawn = torch.Generator().manual_seed(3), []
    for own in rest.values():
        count = max(int(len(own) * shots), 1) if shots < 1 else shots
        drawn += [own[i] for i in torch.randperm(len(own), generator=generator)[:count].tolist()]
    mask = hold_out_share(labels, 0.2)
    assert {*np.flatnonzero(mask)} == held
    assert few_of_the_rest(labels, mask, shots, 3).tolist() == sorted(drawn)


def test_few_shots_of_images_with_several_labels_are_drawn_as_the_authors_do() -> None:
    labels = (np.random.default_rng(0).random((60, 4)) < [0.5, 0.3, 0.1, 0]).astype(np.int64)

    def draw(shots: float) -> np.ndarray:
        generator, mask = torch.Generator().manual_seed(5), torch.zeros(60, dtype=torch.bool)
        for column in range(4):
            own = torch.from_numpy(labels[:, column]).nonzero().flatten()
            if len(own):
                mask[own[torch.randperm(len(own), generator=generator)[: max(int(len(own) * shots), 1)]]] = True
        return mask.nonzero().flatten().numpy()

    once = draw(0.4)
    assert few_of_each(labels, 0.4, 5).tolist() == draw(0.4 / (labels[once].sum() / int(labels.sum() * 0.4))).tolist()
    assert (labels[few_of_each(labels, 3, 5)].sum(axis=0)[:3] >= 3).all()


def test_mae_has_whole_epochs_and_crops_that_are_cut_to_the_photo() -> None:
    assert lengths(Lars(), 1_281_167) == (16_384, 90 * 78, 10 * 78)  # the last 3,215 images of an epoch are dropped
    with pytest.raises(ValueError, match="a step has 1 image, and a batch norm needs at least 2"):
        lengths(Lars(), 1)
    for seed in range(50):  # photos so wide that torchvision's crops would not fit
        _, _, height, width = crop_box((10, 500), Lars(), np.random.default_rng(seed))
        draws = np.random.default_rng(seed)
        area, ratio = 5000 * draws.uniform(0.08, 1), np.exp(draws.uniform(-np.log(4 / 3), np.log(4 / 3)))
        assert (height, width) == (min(round((area / ratio) ** 0.5), 10), min(round((area * ratio) ** 0.5), 500))


def test_mae_probe_trains_as_its_authors_optimiser_does() -> None:
    from vitbackbone.evaluation.mae_head import MaeHead

    torch.manual_seed(0)
    head = MaeHead(6, 4, rate=2.0, momentum=0.9, steps=5, warmup=2, eps=1e-6, device="cpu")
    model = nn.Sequential(nn.BatchNorm1d(6, affine=False, eps=1e-6), nn.Linear(6, 4))
    model[1].load_state_dict(head.linear.state_dict())
    momenta = [torch.zeros_like(p) for p in model[1].parameters()]
    for number in range(5):
        x, y = torch.randn(8, 6) * 3 + 1, torch.randint(0, 4, (8,))
        head.step(x, y, number)
        rate = 2.0 * number / 2 if number < 2 else 1.0 + np.cos(np.pi * (number - 2) / 3)
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), [*model[1].parameters()])
        with torch.no_grad():
            for value, grad, momentum in zip(model[1].parameters(), grads, momenta, strict=True):
                scaled = grad * (0.001 * value.norm() / grad.norm()) if value.ndim > 1 else grad
                momentum.mul_(0.9).add_(scaled)
                value.sub_(rate * momentum)
    assert torch.allclose(head.linear.weight, model[1].weight, atol=1e-6)
    weight, bias = head.folded()
    x = torch.randn(3, 6)
    assert torch.allclose(x @ weight.T + bias, model.eval()(x), atol=1e-5)


def test_linear_reports_the_best_of_all_heads_and_saves_it(imagenet, backbone, tmp_path) -> None:
    result = evaluate("linear", backbone, imagenet, tmp_path, settings=LINEAR, progress=False)["linear"]
    assert len(result.facts["heads"]) == 52
    assert result.value() == max(each["top-1"] for each in result.facts["heads"])
    head = load_head(tmp_path / result.heads["linear"], backbone)
    assert result.value() == pytest.approx(accuracy(head, backbone, imagenet))


def test_a_classifier_of_other_features_comes_out_as_a_head_that_reads_them_or_not_at_all(
    imagenet, backbone, tmp_path
) -> None:
    options = {"view.short": 32, "view.crop": 32, "fit.fixed": 1.0}
    one, several, plain = (
        evaluate("logistic", backbone, imagenet, tmp_path, settings=options | more, progress=False)[0]
        for more in ({}, {"features.blocks": 2, "features.mean": True}, {"features.norm": False})
    )
    assert len(load_head(tmp_path / one.heads["logistic"], backbone).layers) == 1  # it is kept
    head, right = load_head(tmp_path / several.heads["logistic"], backbone), []
    for label, wnid in enumerate(WNIDS):
        for file in (imagenet / "val" / wnid).iterdir():
            with torch.no_grad():
                features = backbone.forward_layers(view(backbone, 32)(file)[None], head.layers, norm=head.needs.norm)
            right.append(int(head(*features).argmax()) == label)
    assert several.value() == pytest.approx(100 * np.mean(right))
    assert plain.heads == {}
    assert any("without the final norm, so it cannot be saved" in note for note in plain.notes)


@pytest.mark.parametrize("variant", cases(["mae", "v1", "v3"], ["mae"]))
def test_other_linear_probes_run(variant, imagenet, backbone, tmp_path) -> None:
    settings = {**SMALL, "fit.size": 32} | ({"fit.epochs": 2} if variant == "mae" else {"fit.steps": 3, "fit.batch": 8})
    settings |= {"features.blocks": 2} if variant == "v1" else {}
    result = evaluate("linear", backbone, imagenet, tmp_path, variant=variant, settings=settings, progress=False)[0]
    head = load_head(tmp_path / result.heads["linear"], backbone)
    assert result.value() == pytest.approx(accuracy(head, backbone, imagenet))


@pytest.mark.parametrize("variant", cases(["vjepa", "aim"], ["vjepa"]))
def test_attentive_probes_run_and_are_saved(variant, imagenet, backbone, tmp_path) -> None:
    settings = {**SMALL, "fit.size": 32, "fit.epochs": 2, "fit.batch": 8}
    result = evaluate("attentive", backbone, imagenet, tmp_path, variant=variant, settings=settings, progress=False)[0]
    head = load_head(tmp_path / result.heads["attentive"], backbone)
    assert result.scores[0].n == 12
    assert result.value() == pytest.approx(accuracy(head, backbone, imagenet))


def test_rate_and_decay_of_an_attentive_probe_fall_as_its_authors_have_it(backbone) -> None:
    """jepa/src/utils/schedulers.py: both are set before each step, for the step's number counted from 1."""
    head = create_head("vjepa_probe", backbone.spec, num_classes=3)
    probing = Probing(head, AdamW(), steps=4)
    for step in range(4):
        probing.step((backbone(torch.zeros(2, 3, 32, 32)),), torch.tensor([0, 1]), step)
        fall = (1 + np.cos(np.pi * (step + 1) / 4)) / 2
        matrices, others = probing.optimizer.param_groups
        assert matrices["lr"] == others["lr"] == pytest.approx(1e-3 * fall)
        assert matrices["weight_decay"] == pytest.approx(1e-6 + (1e-3 - 1e-6) * fall)
        assert others["weight_decay"] == 0


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> dict[str, Path]:
    """The other test sets of ImageNet."""
    root = tmp_path_factory.mktemp("others")
    return {name: make(root / name) for name, make in OTHERS.items()}


def test_one_fit_serves_every_test_set_of_imagenet(imagenet, others, backbone, tmp_path) -> None:
    names = ["linear", *(name for name in others if name != "imagenet-c")]
    data = {name: folder for name, folder in {"imagenet": imagenet, **others}.items() if name != "imagenet-c"}
    results = evaluate(names, backbone, data, tmp_path, settings=LINEAR, progress=False)
    assert len(list((tmp_path / "work").glob("linear-*"))) == 1
    head = load_head(tmp_path / results["linear"].heads["linear"], backbone)
    own = view(backbone)

    def logits(file: Path) -> np.ndarray:
        with torch.no_grad():
            return head(*backbone.forward_layers(own(file)[None], head.layers, norm=True))[0].numpy()

    for name, classes in (("imagenet-a", [1, 2]), ("imagenet-r", [0, 1])):
        right = [
            classes[int(np.argmax(logits(file)[classes]))] == label
            for label in classes
            for file in sorted((others[name] / WNIDS[label]).iterdir())
        ]
        assert results[name].value() == pytest.approx(100 * np.mean(right))
    files = [(label, file) for label in range(4) for file in (others["imagenet-sketch"] / WNIDS[label]).iterdir()]
    right = [int(np.argmax(logits(file))) == label for label, file in files]
    assert results["imagenet-sketch"].value() == pytest.approx(100 * np.mean(right))
    lists = json.loads(others["imagenet-real"].read_text())
    files = sorted((imagenet / "val").rglob("*.JPEG"), key=lambda file: file.name)
    right = [int(np.argmax(logits(file))) in each for file, each in zip(files, lists, strict=True) if each]
    assert results["imagenet-real"].value() == pytest.approx(100 * np.mean(right))
    assert results["imagenet-real"].scores[0].n == len(right)
    v2 = others["imagenet-v2"] / "imagenetv2-matched-frequency-format-val"
    files = [(label, file) for label in range(4) for file in sorted((v2 / str(label)).iterdir())]
    right = [int(np.argmax(logits(file))) == label for label, file in files]
    assert results["imagenet-v2"].value() == pytest.approx(100 * np.mean(right))
    numbered = {name for name in others if name in ("imagenet-v2", "imagenet-real")}
    taken = {name for name in names if any("a place among the 4 classes given" in note for note in results[name].notes)}
    assert taken == numbered  # their indices mean others in a part of ImageNet


@pytest.mark.slow
def test_corruption_errors_are_weighed_by_alexnets(imagenet, others, backbone, tmp_path) -> None:
    from vitbackbone.evaluation.metrics.corruption import ALEXNET

    data = {"imagenet": imagenet, "imagenet-c": others["imagenet-c"]}
    settings = LINEAR | {"metric.short": 36}
    results = evaluate(["linear", "imagenet-c"], backbone, data, tmp_path, settings=settings, progress=False)
    head, own = load_head(tmp_path / results["linear"].heads["linear"], backbone), view(backbone)
    ratios = []
    for kind, alexnet in ALEXNET.items():
        wrong = []
        for severity in range(1, 6):
            file = others["imagenet-c"] / kind / str(severity) / WNIDS[severity % 4] / "0.JPEG"
            with torch.no_grad():
                features = backbone.forward_layers(own(file)[None], head.layers, norm=True)
                wrong.append(int(head(*features).argmax()) != severity % 4)
        ratios.append(np.mean(wrong) / alexnet)
    score = results["imagenet-c"].scores[0]
    assert score.value == pytest.approx(100 * np.mean(ratios), abs=1e-6)
    assert score.interval[0] <= score.value <= score.interval[1]


@pytest.mark.parametrize("variant", ["1percent", pytest.param("10percent", marks=pytest.mark.slow)])
def test_low_shot_reads_the_lists_of_simclr(variant, imagenet, backbone, tmp_path) -> None:
    data = {"imagenet": imagenet, f"imagenet-{variant}": make_list(tmp_path)}
    settings = {**SMALL, "fit.powers": "-1,1,2"}
    options = {"variant": variant, "settings": settings, "progress": False}
    result = evaluate("low-shot", backbone, data, tmp_path / "out", **options)[0]
    dim = backbone.spec.dim
    (X, y), (Q, truth) = (embed(backbone, imagenet, split) for split in ("train", "val"))
    rows = np.array([6 * label + i for label in range(4) for i in (1, 3)])
    model = LogisticRegression(C=result.facts["imagenet"]["C"], tol=1e-12, max_iter=1000)
    model.fit(X[rows, :dim].astype(np.float64), y[rows])
    assert result.value() == pytest.approx(100 * model.score(Q[:, :dim].astype(np.float64), truth))


def test_clusters_are_scikit_learns(imagenet, backbone, tmp_path) -> None:
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    settings = {**SMALL, "view.short": 32}
    result = evaluate("clustering", backbone, {"imagenet": imagenet}, tmp_path, settings=settings, progress=False)[0]
    Q, truth = embed(backbone, imagenet, "val", short=32)
    model = MiniBatchKMeans(4, batch_size=500, n_init="auto", random_state=42).fit(Q[:, : backbone.spec.dim])
    assert result.value() == pytest.approx(100 * v_measure_score(truth, model.labels_), abs=1e-6)
    pairs = list(zip(model.labels_, truth, strict=True))
    matched = max(sum(names[cluster] == label for cluster, label in pairs) for names in permutations(range(4)))
    assert result.value("accuracy of matched clusters") == pytest.approx(100 * matched / len(truth))
    assert result.value("normalised mutual information") == pytest.approx(result.value())  # equal by their formulas
    assert np.mean(result.scores[0].interval) == pytest.approx(result.value())  # bootstrap draws are too pure


@pytest.mark.slow
def test_protocols_that_share_a_view_share_one_extraction(imagenet, backbone, tmp_path) -> None:
    evaluate(["knn", "knn-few-shot"], backbone, imagenet, tmp_path, settings={**SMALL, "fit.ks": "1"}, progress=False)
    assert len(list((tmp_path / "features").iterdir())) == 2  # train and test
    assert [each.protocol for each in read_results(tmp_path)] == ["knn", "knn-few-shot"]
