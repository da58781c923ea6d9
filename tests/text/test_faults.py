"""Text towers from unusual files, and the errors about wrong files."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.helpers import randomise, relative_error
from tests.text.models import CASES, TEXT, TEXTS, clip_tokenizer
from vitbackbone import ConversionError, TextConfig, load_text
from vitbackbone.checkpoints.tensor_files import LazyTensors

CLOSE = 1e-5


@pytest.mark.parametrize("kind", ["CLIPTextModel", "CLIPTextModelWithProjection", "SiglipTextModel", "Tipsv2TextModel"])
def test_a_tower_that_was_saved_alone(kind: str, tmp_path: Path) -> None:
    tokenizer = clip_tokenizer()
    config = getattr(transformers, kind.removesuffix("WithProjection").removesuffix("Model") + "Config")
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    settings = {**TEXT, "max_position_embeddings": 16, "vocab_size": len(tokenizer.get_vocab()), **ids}
    model = randomise(getattr(transformers, kind)(config(**settings)))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = load_text(tmp_path)
    tokens, mask = text.tokenizer(["a photo of a cat", "dog"])
    with torch.inference_mode():
        out = model(input_ids=tokens, **({"attention_mask": mask} if kind.startswith("Tips") else {}))
        theirs = out.text_embeds if kind.endswith("Projection") else out.pooler_output
        assert relative_error(text(["a photo of a cat", "dog"]), theirs) < CLOSE
        with pytest.raises(ValueError, match="without the scale"):
            text.logits(theirs, ["a"])


def test_a_vocabulary_and_merges_are_the_same_tokenizer(tmp_path: Path) -> None:
    CASES["clip"].save(tmp_path)
    ids = load_text(tmp_path).tokenizer(TEXTS).ids
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    assert torch.equal(load_text(tmp_path).tokenizer(TEXTS).ids, ids)


@pytest.mark.parametrize("name", ["clip", "siglip", "tipsv2"])
def test_the_batch_changes_no_vector(name: str, tmp_path: Path) -> None:
    CASES[name].save(tmp_path)
    text = load_text(tmp_path)
    with torch.inference_mode():
        together = text(TEXTS)
        for i, each in enumerate(TEXTS):
            if each:
                assert relative_error(text(each), together[i : i + 1]) < CLOSE


def test_nothing_but_the_text_tower_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CASES["clip"].save(tmp_path)
    read: list[str] = []
    original = LazyTensors.__getitem__

    def noting(self: LazyTensors, key: str) -> torch.Tensor:
        read.append(key)
        return original(self, key)

    monkeypatch.setattr(LazyTensors, "__getitem__", noting)
    load_text(tmp_path)
    assert read
    assert not [key for key in read if key.startswith("vision_model")]


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def with_file(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def with_settings(**settings: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("config.json"), "no config.json and no open_clip_config.json"),
        (without("tokenizer.json"), "has no tokenizer: want tokenizer.json"),
        (with_file("tokenizer.json", b"{}"), "is not a tokenizer"),
        (with_file("tokenizer.json", b"\xff\x00"), "is not a tokenizer"),
        (with_file("tokenizer_config.json", b'{"pad_token": "<nowhere>"}'), "lacks its padding token '<nowhere>'"),
        (with_file("tokenizer_config.json", b'{"padding_side": "up"}'), "padding_side"),
        (with_settings(model_type="vit"), "model without a text tower"),
        (with_settings(text_config=5), "text_config=5"),
        (with_settings(text_config={"hidden_size": 32, "num_attention_heads": 5}), "does not divide"),
        (with_settings(text_config={"hidden_act": "mish"}), "hidden_act='mish' in the text tower"),
        (with_settings(text_config={"vocab_size": 1 << 40}), "vocab_size"),
        (with_settings(architectures=["CLIPForImageClassification"]), "has no text tower"),
        (with_settings(projection_dim=7), "shape"),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    CASES["clip"].save(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=re.escape(words)) as raised:
        load_text(tmp_path)
    assert str(tmp_path) in str(raised.value) or "<nowhere>" in words


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    CASES["clip"].save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["text_model.encoder.layers.1.mlp.fc2.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match="blocks.1.mlp.fc2.bias"):
        load_text(tmp_path)


def test_unknown_names_and_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'vit_base_patch32_clip_224.openai'"):
        load_text("vit_base_patch32_clip_224.opnai")
    for name, words in {
        "": "the name is empty",
        "nano": "'nano' is an image tower, and no text tower is known for it",
        "vit_base_patch16_224.augreg_in21k": "is an image tower",
        "timm:resnet18": "is an image tower",
    }.items():
        with pytest.raises(ValueError, match=words):
            load_text(name)
    CASES["clip"].save(tmp_path)
    (tmp_path / "words.txt").write_text("cat")
    with pytest.raises(ValueError, match=r"words.txt; want a directory, or a file named tokenizer.json"):
        load_text(tmp_path, tokenizer=tmp_path / "words.txt")
    text = load_text(tmp_path)
    with pytest.raises(ValueError, match="want a text"):
        text([])
    with pytest.raises(ValueError, match="token ids"):
        text.transformer(torch.tensor([[10**6]]))


@pytest.mark.parametrize("fields", [{"pool": "eos", "eos_id": -1}, {"scale": "none", "logit_bias": True}, {"dim": 7}])
def test_contradictions_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Config: "):
        TextConfig(**fields)
