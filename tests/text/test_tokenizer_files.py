"""Tokenizers from other files than `tokenizer.json` equal those of transformers: token by token, on odd texts."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from sentencepiece import sentencepiece_model_pb2

from tests.helpers import cases
from tests.text.models import TEXTS, WORDS, bert_tokenizer, clip_tokenizer
from vitbackbone.checkpoints.text.tokenizer_files import lowered, read_tokenizer
from vitbackbone.model.text.tokens import CLEANINGS

ODD = (
    *TEXTS,
    "  spaces  and\ttabs\n",
    "ﬁne １２３ Ⅳ ½",
    "日本語 🐈\u200d⬛ 한국어 x",
    "a▁b ▁",
    "İstanbul ÉTÉ ẞ",
    "!!! ?! it's we'll",
    "a",
    "   ",
    "long " * 300,
    "e\u0301 \u00a0 \u3000 \x00 \u200b",
)


def train(kind: str, **options: Any) -> bytes:
    """Return a sentencepiece model, learned from the texts."""
    out = io.BytesIO()
    settings = {"model_type": kind, "hard_vocab_limit": False, "character_coverage": 1.0, "minloglevel": 2}
    lines = [line for line in WORDS if line] * 3
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, **{**settings, **options})
    return out.getvalue()


T5 = {"vocab_size": 150, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
XLM = {"vocab_size": 150, "unk_id": 0, "bos_id": 1, "eos_id": 2}
GEMMA = {
    **{"vocab_size": 480, "byte_fallback": True, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
    **{"bos_piece": "<bos>", "eos_piece": "<eos>", "normalization_rule_name": "identity"},
    **{"add_dummy_prefix": False, "remove_extra_whitespaces": False, "user_defined_symbols": ["<mask>"]},
}
TIPS = {"vocab_size": 480, "byte_fallback": True, "pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}


@dataclass(frozen=True)
class Pieces:
    """A sentencepiece model, and the class that reads it."""

    kind: str
    file: str
    model: str
    options: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    change: Callable[[str], str] = str  # what `load_text` does to a text in front of the tokenizer

    def save(self, folder: Path) -> None:
        (folder / self.file).write_bytes(train(self.model, **self.options))
        settings = {"tokenizer_class": self.kind, **self.settings}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))


CASES: dict[str, Pieces] = {
    "siglip": Pieces("SiglipTokenizer", "spiece.model", "unigram", T5, change=CLEANINGS["siglip"]),
    "siglip, another normalisation": Pieces(
        "SiglipTokenizer",
        "spiece.model",
        "unigram",
        {**T5, "normalization_rule_name": "nmt_nfkc_cf"},
        change=CLEANINGS["siglip"],
    ),
    "t5": Pieces("T5Tokenizer", "spiece.model", "unigram", T5, {"extra_ids": 0}),
    "xlm-r": Pieces("XLMRobertaTokenizer", "sentencepiece.bpe.model", "unigram", XLM),
    "gemma": Pieces("GemmaTokenizer", "tokenizer.model", "bpe", GEMMA),
    "gemma with ends": Pieces(
        "GemmaTokenizer", "tokenizer.model", "bpe", GEMMA, {"add_bos_token": True, "add_eos_token": True}
    ),
    "siglip 2": Pieces("Siglip2Tokenizer", "tokenizer.model", "bpe", GEMMA, {"add_eos_token": True}, str.lower),
    "tipsv2": Pieces("Tipsv2Tokenizer", "tokenizer.model", "bpe", TIPS),
}


@pytest.mark.parametrize("name", CASES)
def test_a_sentencepiece_model_is_read(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    case.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = read_tokenizer(find_in(tmp_path), "here", case.kind)
    ours = lowered(ours) if case.kind == "Tipsv2Tokenizer" else ours
    for text in ODD:
        assert ours.encode(case.change(text)).ids == theirs(text)["input_ids"], text
    assert ours.get_vocab_size() == len(theirs)


SPECS: dict[str, dict[str, bool]] = {
    "as trained": {},
    "no prefix": {"add_dummy_prefix": False},
    "all spaces": {"remove_extra_whitespaces": False},
    "no prefix, all spaces": {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
    "plain spaces": {"escape_whitespaces": False},
    "no prefix, spaces as suffixes": {"add_dummy_prefix": False, "treat_whitespace_as_suffix": True},
    "pieces across words": {"split_by_whitespace": False},
    "bytes": {"byte_fallback": True},
}


@pytest.mark.parametrize("model", ["unigram", "bpe"])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", ["T5Tokenizer", "GemmaTokenizer", "Tipsv2Tokenizer"])
def test_a_model_normalises_texts_as_it_says(kind: str, spec: str, model: str, tmp_path: Path) -> None:
    """The ids are those of sentencepiece itself, whatever the class of the tokenizer."""
    options = {"T5Tokenizer": T5, "GemmaTokenizer": GEMMA, "Tipsv2Tokenizer": TIPS}[kind]
    given = {"add_dummy_prefix": True, "remove_extra_whitespaces": True, **SPECS[spec], "user_defined_symbols": []}
    escaped = given.pop("escape_whitespaces", True)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(train(model, **{**options, "vocab_size": 480, **given}))
    proto.normalizer_spec.escape_whitespaces = escaped
    file = tmp_path / "spiece.model"
    file.write_bytes(proto.SerializeToString())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    ours = read_tokenizer(find_in(tmp_path), "here", kind)
    for text in (*ODD, "\u0301 a", "\u200b x", "a\u2028\u2028b\x0b\x85c"):
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text), text


SYMBOLS = ["<mask>", "[x]", "<mas", "A|B"]
WITH_SYMBOLS = (
    *("a<mask>b", "<mask> a", "a photo <mask>  of <mask>", " <mask><mask>x ", "[x]", "a [x]b<mas <mask", "A|Ba a|b"),
    "é<mask> １[x]２  ",
)


@pytest.mark.parametrize("model", ["unigram", "bpe"])
@pytest.mark.parametrize("spec", cases(["as trained", "no prefix", "no prefix, all spaces", "bytes"], ["as trained"]))
def test_symbols_inside_a_text_stay_whole(spec: str, model: str, tmp_path: Path) -> None:
    """They part the text into pieces, but no space comes or goes beside them."""
    given = {"add_dummy_prefix": True, "remove_extra_whitespaces": True, **SPECS[spec]}
    options = {**T5, "vocab_size": 480, "user_defined_symbols": SYMBOLS, **given}
    proto = train(model, **options)
    (tmp_path / "spiece.model").write_bytes(proto)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=proto)
    ours = read_tokenizer(find_in(tmp_path), "here", "T5Tokenizer")
    for text in (*ODD, *WITH_SYMBOLS):
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text), text


def test_spaces_behind_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(train("unigram", **T5, treat_whitespace_as_suffix=True))
    with pytest.raises(
        ValueError, match=r"spiece\.model has treat_whitespace_as_suffix=True with .* give tokenizer\.json"
    ):
        read_tokenizer(find_in(tmp_path), "here", "T5Tokenizer")


def find_in(folder: Path) -> Callable[[str], Path | None]:
    return lambda name: path if (path := folder / name).exists() else None


@pytest.mark.parametrize("make", [clip_tokenizer, bert_tokenizer])
def test_a_vocabulary_is_read(make: Callable[[], Any], tmp_path: Path) -> None:
    """The files of a slow tokenizer alone: vocab.json and merges.txt, or vocab.txt."""
    theirs = make()
    model = json.loads(theirs.backend_tokenizer.to_str())["model"]
    if "merges" in model:
        (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
        (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"])]))
    else:
        words = sorted(model["vocab"], key=model["vocab"].__getitem__)
        (tmp_path / "vocab.txt").write_text("\n".join(words))
    ours = read_tokenizer(find_in(tmp_path), "here")
    for text in ODD:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", "SiglipTokenizer", "no pieces"),
        (b"not a model", "SiglipTokenizer", "is not a sentencepiece model"),
        (None, "BertTokenizer", "the class of its tokenizer is BertTokenizer. Set tokenizer_class"),
        (None, "", "the class of its tokenizer is not known. Set tokenizer_class"),
        (None, "Siglip2Tokenizer", "no piece '<eos>'"),
    ],
)
def test_what_is_wrong_with_a_model_is_said(data: bytes | None, kind: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(train("unigram", **T5) if data is None else data)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_eos_token": True}))
    with pytest.raises(ValueError, match=words) as raised:
        read_tokenizer(find_in(tmp_path), "here", kind)
    assert "spiece.model" in str(raised.value)
