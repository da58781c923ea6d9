"""Text towers equal their upstreams: tokens, vectors and logits."""

from pathlib import Path

import pytest
import torch

from tests.helpers import relative_error
from tests.text.models import CASES, TEXTS, text_vectors
from vitbackbone import load_text

CLOSE = 1e-5


@pytest.mark.parametrize("name", CASES)
def test_tokens_and_vectors_equal_transformers(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model, tokenizer = case.save(tmp_path)
    text = load_text(tmp_path)
    theirs = case.tokens(tokenizer)
    ids, mask = text.tokenizer(TEXTS)
    assert torch.equal(ids, theirs["input_ids"])
    assert torch.equal(mask, theirs["attention_mask"])
    with torch.inference_mode():
        assert relative_error(text(TEXTS), text_vectors(case, model, tokenizer)) < CLOSE


def test_berts_vocabulary_alone_is_a_tokenizer(tmp_path: Path) -> None:
    """Repositories of Chinese-CLIP have `vocab.txt` and no `tokenizer.json`."""
    case = CASES["chinese clip"]
    _, tokenizer = case.save(tmp_path)
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in pieces), encoding="utf-8")
    (tmp_path / "tokenizer.json").unlink()
    texts = [*TEXTS, "戴眼镜的猫 [MASK]"]
    ids, mask = load_text(tmp_path).tokenizer(texts)
    theirs = case.tokens(tokenizer, texts)
    assert torch.equal(ids, theirs["input_ids"])
    assert torch.equal(mask, theirs["attention_mask"])
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[PAD]\na\n")
    with pytest.raises(ValueError, match=r"vocab.txt has no \[SEP\]"):
        load_text(tmp_path)
