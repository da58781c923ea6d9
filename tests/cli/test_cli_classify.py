"""`classify`: the labels and probabilities of the checkpoint's own classifier."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import transformers
from PIL import Image
from timm.data import ImageNetInfo

from tests.helpers import randomise, save_photo
from vitbackbone.checkpoints.zoo import ZOO
from vitbackbone.cli import main

LABELS = ["tench, Tinca tinca", "goldfish", "great white shark", "crane", "hen", "ostrich", "brambling"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, transformers.ViTForImageClassification]:
    """Return a directory that transformers saved, of a model with a classifier and named classes, and the model."""
    config = transformers.ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        id2label=dict(enumerate(LABELS)),
    )
    model = randomise(transformers.ViTForImageClassification(config))
    directory = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(directory)
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(directory)
    return directory, model


def test_classify_prints_the_labels_and_probabilities_of_transformers(
    classifier: tuple[Path, transformers.ViTForImageClassification], tmp_path: Path, capsys: object
) -> None:
    directory, model = classifier
    photos = [str(save_photo(tmp_path / f"{i}.png", 50 + i, 70, seed=i)) for i in range(2)]
    assert main(["classify", *photos, "--model", str(directory), "--top", "99"]) == 0  # seven are all there are
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    processor = transformers.ViTImageProcessorPil.from_pretrained(directory)
    for photo in photos:
        with torch.inference_mode(), Image.open(photo) as image:
            theirs = model(**processor(image, return_tensors="pt")).logits.softmax(dim=1)[0]
        order = theirs.argsort(descending=True)
        assert [label for path, label, _ in lines if path == photo] == [LABELS[i] for i in order]
        ours = [float(probability) for path, _, probability in lines if path == photo]
        assert ours == pytest.approx(theirs[order].tolist(), abs=6e-4)  # three digits are printed
        assert theirs.max() - theirs.min() > 0.1  # which other weights or another photo would not reach


def test_classify_goes_on_after_a_bad_photo(
    classifier: tuple[Path, transformers.ViTForImageClassification], photos: Path, capsys: object
) -> None:
    images = [str(photos / "dark/text.jpg"), str(photos / "dark/02.jpg"), str(photos / "bright/broken.jpg")]
    assert main(["classify", *images, "--model", str(classifier[0])]) == 1
    output = capsys.readouterr()
    assert [line.split("\t")[0] for line in output.out.splitlines()] == [images[1]] * 5
    assert [line.split(":")[0] for line in output.err.splitlines()] == [f"{images[i]}\tfailed" for i in (0, 2)]
    assert main(["classify", images[0], "--model", str(classifier[0])]) == 1
    capsys.readouterr()
    assert main(["classify", *images, "--model", str(classifier[0]), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in rows] == images
    assert [len(row["classes"]) for row in rows if "classes" in row] == [5]
    assert [row["reason"] for row in rows if "reason" in row] == ["unknown format", "damaged"]


def test_classify_names_imagenets_classes_and_counts_those_of_other_weights(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object
) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    small = replace(ZOO[name].config, image_size=(32, 32), patch_size=8, dim=48, depth=2, num_heads=3, mlp_dim=192)
    preprocess = replace(ZOO[name].preprocess, image_size=(32, 32))
    photo, weights = photos / "dark/02.jpg", tmp_path / "weights.pth"
    names = ImageNetInfo().label_descriptions()
    for num_classes, published, named in ((1000, 1000, names.__getitem__), (11, 1000, str), (11, 11, str)):
        entry = replace(ZOO[name], config=small, preprocess=preprocess, num_classes=published)
        monkeypatch.setitem(ZOO, name, entry)
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
        model = randomise(timm.create_model(name.split(".")[0], num_classes=num_classes, **sizes))
        torch.save(model.state_dict(), weights)
        assert main(["classify", str(photo), "--model", name, "--weights", str(weights), "--top", "3"]) == 0
        printed = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
        with torch.inference_mode():
            best = model(preprocess(photo)[None])[0].topk(3).indices
        assert printed == [named(int(i)) for i in best]


def test_classify_says_what_it_cannot_use(
    classifier: tuple[Path, transformers.ViTForImageClassification], photos: Path, tmp_path: Path, capsys: object
) -> None:
    def error(*arguments: str) -> str:
        assert main(["classify", str(photos / "dark/02.jpg"), *arguments]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        return output.err

    assert "nano comes without a classifier; one that has one is hf:google/vit-base-patch16-224" in error(
        "--model", "nano"
    )
    assert "--weights random is an untrained model without a classifier" in error(
        "--model", "deit_tiny_patch16_224.fb_in1k", "--weights", "random"
    )
    assert "--device gpu is not a device" in error("--model", str(classifier[0]), "--device", "gpu")
    shutil.copytree(classifier[0], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "1": "b"}}))
    assert "7 outputs of the classifier, 2 labels" in error("--model", str(tmp_path / "model"))
    del config["id2label"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert main(["classify", str(photos / "dark/02.jpg"), "--model", str(tmp_path / "model"), "--top", "7"]) == 0
    assert {line.split("\t")[1] for line in capsys.readouterr().out.splitlines()} == set("0123456")
