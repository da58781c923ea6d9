"""Image towers and text towers of one directory: logits as upstream's, and classification by labels alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from heads import ZeroShot
from tests.helpers import photo, relative_error, save_photo
from tests.text.models import CASES, TEXTS
from vitbackbone import ImageFeatures, load_backbone, load_text
from vitbackbone.cli import main

CLOSE = 1e-5
LABELS = ["cat", "dog", "red bowl"]
TEMPLATES = ["a photo of a {}.", "the {} in the sun"]
SPOKEN = [text for text in TEXTS if text]  # transformers' TIPSv2 has no number for an empty text
PAIRED = ("clip", "clip legacy", "metaclip 2", "aimv2", "siglip", "tipsv2")


def upstream_logits(name: str, model: Any, tokenizer: Any, pixels: torch.Tensor, texts: list[str]) -> torch.Tensor:
    tokens = CASES[name].tokens(tokenizer, texts)
    given = {"input_ids": tokens["input_ids"]} if not CASES[name].masked else tokens
    with torch.inference_mode():
        return model(pixel_values=pixels, **given).logits_per_image


@pytest.mark.parametrize("name", PAIRED)
def test_logits_of_images_and_texts_equal_transformers(name: str, tmp_path: Path) -> None:
    model, tokenizer = CASES[name].save(tmp_path)
    backbone, text = load_backbone(tmp_path), load_text(tmp_path)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        pooled = backbone(pixels).pooled
        ours = text.logits(pooled, SPOKEN)
        assert torch.equal(ours, text.logits(pooled, text(SPOKEN)))
    theirs = upstream_logits(name, model, tokenizer, pixels, SPOKEN)
    assert relative_error(ours, theirs) < CLOSE
    probabilities = theirs.sigmoid() if "siglip" in name else theirs.softmax(dim=-1)
    assert relative_error(text.probabilities(ours), probabilities) < 1e-4


def test_a_class_is_the_mean_of_its_normalised_prompts(tmp_path: Path) -> None:
    CASES["clip"].save(tmp_path)
    text = load_text(tmp_path)
    with torch.inference_mode():
        rows = []
        for label in LABELS:
            each = torch.stack([text([t.replace("{}", label)])[0] for t in TEMPLATES])
            mean = (each / each.norm(dim=1, keepdim=True)).mean(dim=0)
            rows.append(mean / mean.norm())
        assert relative_error(text.class_vectors(LABELS, TEMPLATES), torch.stack(rows)) < CLOSE


def test_the_estimator_works_alone_and_in_a_pipeline(tmp_path: Path) -> None:
    CASES["clip"].save(tmp_path / "model")
    text = load_text(tmp_path / "model")
    photos = [photo(40 + i, 50, seed=i) for i in range(3)]
    features = ImageFeatures(tmp_path / "model", pooling="pooled")
    X = features.transform(photos)
    model = ZeroShot(text, LABELS, TEMPLATES)
    probabilities = model.predict_proba(X)
    with torch.inference_mode():
        wanted = text.logits(torch.from_numpy(X), text.class_vectors(LABELS, TEMPLATES)).softmax(dim=1)
    assert np.allclose(probabilities, wanted.numpy(), atol=1e-6)
    assert list(model.predict(X)) == [LABELS[i] for i in probabilities.argmax(axis=1)]
    pipeline = make_pipeline(features, clone(ZeroShot(tmp_path / "model", LABELS, TEMPLATES)))
    assert list(pipeline.predict(photos)) == list(model.predict(X))
    assert model.score(X, model.predict(X)) == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": []}, "want a list of labels"),
        ({"labels": "cat"}, "want a list of labels"),
        ({"labels": ["a", "b", "a"]}, "'a' twice"),
        ({"labels": ["a"], "templates": "a photo"}, "want one {}"),
        ({"labels": ["a"], "templates": []}, "no template"),
    ],
)
def test_wrong_labels_and_templates_are_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    CASES["clip"].save(tmp_path)
    with pytest.raises(ValueError, match=words):
        ZeroShot(load_text(tmp_path), **options).fit()


def test_vectors_of_another_model_are_refused(tmp_path: Path) -> None:
    CASES["clip"].save(tmp_path)
    with pytest.raises(ValueError, match="vectors of 5 numbers and the texts of 24"):
        ZeroShot(load_text(tmp_path), ["a"]).predict(np.zeros((2, 5)))


# ---- the command --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    for name in ("clip", "siglip"):
        CASES[name].save(folder / name)
    for i in range(2):
        save_photo(folder / "photos" / "sub" / f"{i}.png", seed=i)
    save_photo(folder / "one.png", seed=7)
    (folder / "labels.txt").write_text("cat\n\n  dog \nred, old bowl\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_classify_prints_the_probabilities_of_labels(name: str, place: Path, capsys: object) -> None:
    command = ["classify", str(place / "one.png"), str(place / "photos"), "--model", str(place / name)]
    assert main([*command, "--labels", "cat, dog,red bowl", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [Path(row["path"]).name for row in rows] == ["one.png", "0.png", "1.png"]
    backbone, text = load_backbone(place / name), load_text(place / name)
    with torch.inference_mode():
        pooled = backbone(backbone.preprocess(place / "one.png")[None]).pooled
        wanted = text.probabilities(text.logits(pooled, text.class_vectors(LABELS)))[0]
    found = {each["class"]: each["probability"] for each in rows[0]["classes"]}
    assert found == pytest.approx(dict(zip(LABELS, wanted.tolist(), strict=True)), abs=1e-6)
    assert [each["probability"] for each in rows[0]["classes"]] == sorted(found.values(), reverse=True)


def test_classify_takes_a_file_of_labels_and_templates(place: Path, capsys: object) -> None:
    command = [
        "classify",
        str(place / "one.png"),
        "--model",
        str(place / "clip"),
        "--labels",
        str(place / "labels.txt"),
    ]
    assert main([*command, "--template", "the {} in the sun", "--template", "a {}", "--top", "9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split("\t")[1] for line in lines) == ["cat", "dog", "red, old bowl"]
    first = main([*command, "--top", "9"]), capsys.readouterr().out.splitlines()
    assert first[0] == 0
    assert first[1] != lines


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--labels", ""], "empty"),
        (["--labels", " , "], "no label"),
        (["--labels", "a,b,a"], "'a' twice"),
        (["--labels", "nowhere.txt"], "no file nowhere.txt"),
        (["--labels", "a", "--template", "photo"], "want one {}"),
        (["--template", "a {}"], "--labels"),
        (["--labels", "a" * 5000, "--model", "nano"], "text tower"),
    ],
)
def test_classify_by_labels_says_what_is_wrong(arguments: list[str], words: str, place: Path, capsys: object) -> None:
    assert main(["classify", str(place / "one.png"), "--model", str(place / "clip"), *arguments]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert len(said.err.splitlines()) == 1
    assert not said.out


def test_a_model_without_a_text_tower_is_told(place: Path, tmp_path: Path, capsys: object) -> None:
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    command = ["classify", str(place / "one.png"), "--labels", "cat,dog", "--model"]
    assert main([*command, str(tmp_path / "vit")]) == 2
    assert "without a text tower" in capsys.readouterr().err


def test_a_photo_that_cannot_be_read_costs_the_exit_code_alone(place: Path, tmp_path: Path, capsys: object) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    command = ["classify", str(tmp_path / "bad.png"), str(place / "one.png"), "--model", str(place / "clip")]
    assert main([*command, "--labels", "cat,dog"]) == 1
    said = capsys.readouterr()
    assert "bad.png" in said.err
    assert len(said.out.splitlines()) == 2
