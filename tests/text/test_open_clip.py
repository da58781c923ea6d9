"""Text towers of open_clip's repositories equal open_clip: tokens, vectors and logits."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("open_clip")

from tests.helpers import relative_error
from tests.text.models import TEXTS
from tests.text.open_clip_models import OPEN_CLIP
from vitbackbone import load_text

CLOSE = 1e-5
ODD = (
    "a cat’s “toy” &amp;amp; ﬁne",
    "naÃ¯ve ÉTÉ  İstanbul ΟΔΟΣ",
    "12345 :-) ... IT'S we'll",
    "_a_b_c_ <|endoftext|> b",
)


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_tokens_vectors_and_logits_equal_open_clip(name: str, tmp_path: Path) -> None:
    model, tokenizer = OPEN_CLIP[name].save(tmp_path)
    text = load_text(tmp_path)
    texts = [*TEXTS, *ODD]
    ids = tokenizer(texts)
    assert torch.equal(text.tokenizer(texts).ids, ids)
    with torch.inference_mode():
        vectors = model.encode_text(ids)
        assert relative_error(text(texts), vectors) < CLOSE
        images = torch.randn(3, vectors.shape[1], generator=torch.Generator().manual_seed(0))
        unit = torch.nn.functional.normalize
        logits = model.logit_scale.exp() * unit(images, dim=-1) @ unit(vectors, dim=-1).T
        logits = logits if model.logit_bias is None else logits + model.logit_bias
        assert relative_error(text.logits(images, texts), logits) < CLOSE


@pytest.mark.parametrize("setting", [{"hf_model_name": "roberta-base"}, {"embed_cls": True}, {"qk_norm": True}])
def test_other_text_towers_are_refused(setting: dict[str, object], tmp_path: Path) -> None:
    OPEN_CLIP["clip"].save(tmp_path)
    file = tmp_path / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["text_cfg"] |= setting
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"text_cfg.{next(iter(setting))}"):
        load_text(tmp_path)
