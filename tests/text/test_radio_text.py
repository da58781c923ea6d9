"""The text towers of C-RADIO's teachers: read from the teachers' repositories, with the authors' cleaning of texts."""

import json
import string
from pathlib import Path

import pytest
import torch

from tests.helpers import relative_error
from tests.text.models import CASES, TEXTS
from tests.text.open_clip_models import OPEN_CLIP
from vitbackbone import load_text

TEACHERS = [
    {"name": "clip", "type": "open_clip", "model": "ViT-H-14-378-quickgelu", "pretrained": "dfn5b"},
    {"name": "siglip2-g", "type": "siglip2", "model": "siglip2-g-384"},
    {"name": "sam", "type": "sam", "model": "vit-h"},
]
PLACES = {"apple/DFN5B-CLIP-ViT-H-14-378": "clip", "google/siglip2-giant-opt-patch16-384": "siglip"}


@pytest.fixture
def radio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of C-RADIO; the Hub holds the repositories of its teachers."""
    folders = {repository: tmp_path / name for repository, name in PLACES.items()}

    def there(_known: str, repository: str, file: str, _revision: str | None) -> Path | None:
        found = folders[repository] / file
        return found if found.exists() else None

    for folder in (*folders.values(), tmp_path / "radio"):
        folder.mkdir()
    monkeypatch.setattr("vitbackbone.checkpoints.text.load.download_if_there", there)
    (tmp_path / "radio" / "config.json").write_text(json.dumps({"args": {"teachers": TEACHERS}}))
    return tmp_path / "radio"


def canonical(text: str) -> str:
    """The formula of google-research/big_vision, prompt_engineering.py."""
    return " ".join("".join(c for c in text.replace("_", " ") if c not in string.punctuation).lower().split())


def test_siglip_2_reads_canonical_texts(radio: Path) -> None:
    case = CASES["siglip 2 in siglip"]
    model, tokenizer = case.save(radio.parent / "siglip")
    text = load_text(radio, adaptor="siglip2-g")
    ids = case.tokens(tokenizer, [canonical(each) for each in TEXTS])["input_ids"]
    assert torch.equal(text.tokenizer(TEXTS).ids, ids)
    with torch.inference_mode():
        assert relative_error(text(TEXTS), model.text_model(ids).pooler_output) < 1e-5


@pytest.mark.slow
def test_clip_is_open_clips(radio: Path) -> None:
    model, tokenizer = OPEN_CLIP["clip quick"].save(radio.parent / "clip")
    text = load_text(radio, adaptor="clip")
    with torch.inference_mode():
        assert relative_error(text(TEXTS), model.encode_text(tokenizer(list(TEXTS)))) < 1e-5


def test_teachers_without_texts_are_named(radio: Path) -> None:
    with pytest.raises(ValueError, match="no text tower is known for this teacher, type='sam'"):
        load_text(radio, adaptor="sam")
    with pytest.raises(ValueError, match="adaptor='dino'.*want one of 'clip', 'sam', 'siglip2-g'"):
        load_text(radio, adaptor="dino")
