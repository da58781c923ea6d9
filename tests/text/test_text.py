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
