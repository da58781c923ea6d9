"""Building a tokenizer from a sentencepiece model, where a directory has no `tokenizer.json`.

Such a model holds pieces with scores, and the normalisation of texts (Kudo & Richardson 2018). It does not say which
tokens begin and end a text: that depends on the class of the tokenizer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitbackbone.files import read_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNIGRAM, BPE = 1, 2  # `model_type`
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # the types of pieces
LONGEST = 1 << 10  # characters of a piece
SPACE = "▁"  # in place of a space


@dataclass(frozen=True)
class Around:
    """The steps that a class of tokenizers adds to the model.

    `first`: the tokens of the first ids, whatever the model has there. `unknown`: the id among them of an unknown word.
    """

    start: str = ""  # a token in front of a text
    end: str = ""  # a token after a text
    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()  # tokens after the model's own
    replaced: int = 0  # the pieces of the model in whose place `first` stands
    unknown: int | None = None


_XLM = Around("<s>", "</s>", ("<s>", "<pad>", "</s>", "<unk>"), ("<mask>",), replaced=3, unknown=3)
_T5 = Around(end="</s>")
_GEMMA = Around()
KINDS: dict[str, Around] = {
    "SiglipTokenizer": _T5,
    "T5Tokenizer": _T5,
    "T5TokenizerFast": _T5,
    "XLMRobertaTokenizer": _XLM,
    "XLMRobertaTokenizerFast": _XLM,
    "GemmaTokenizer": _GEMMA,
    "GemmaTokenizerFast": _GEMMA,
    "Siglip2Tokenizer": _GEMMA,
    "Tipsv2Tokenizer": Around(),
}


def read_sentencepieces(file: Path, kind: str, limit: int, starts: bool = False, ends: bool = False) -> "Tokenizer":
    """Return the tokenizer of a sentencepiece model.

    `kind`: the class of the tokenizer. `limit`: the most bytes of the file. `starts`, `ends`: whether a text gets a
    first and a last token, if the class itself adds none. Raises `ValueError` on an unknown class or a damaged file,
    and `ImportError` without the libraries.
    """
    if kind not in KINDS:
        raise ValueError(
            f"{file} is a sentencepiece model, and the class of its tokenizer is {kind or 'not known'}. Set "
            f"tokenizer_class in tokenizer_config.json to one of {', '.join(KINDS)}, or write tokenizer.json by "
            "transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    proto = _parse(file, limit)
    around = KINDS[kind]
    pieces = [(piece.piece, float(piece.score)) for piece in proto.pieces]
    pieces = [*((name, 0.0) for name in around.first), *pieces[around.replaced :], *((n, 0.0) for n in around.last)]
    names = [piece for piece, _ in pieces]
    if not names or len(set(names)) < len(names) or max(map(len, names)) > LONGEST:
        raise ValueError(f"{file} has no pieces, one of them twice, or one of more than {LONGEST} characters")
    unknown = int(proto.trainer_spec.unk_id) if around.unknown is None else around.unknown
    special = [piece.piece for piece in proto.pieces if piece.type == CONTROL]
    whole = [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED]
    try:
        inside = _inside_text(proto.normalizer_spec, whole)
        tokenizer = _model(proto, pieces, unknown, bool(inside))
        _prepare(tokenizer, proto.normalizer_spec, inside)
    except Exception as error:  # the library has no error type of its own
        raise ValueError(f"{file} is not a sentencepiece model that the library tokenizers reads: {error}") from error
    others = [name for name in whole if name not in inside]
    _add(tokenizer, [*special, *around.first, *around.last, names[unknown]], others)
    _surround(tokenizer, around.start or "<bos>" * starts, around.end or "<eos>" * ends, file)
    return tokenizer


def _parse(file: Path, limit: int) -> Any:
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise ImportError(
            f"{file} needs the libraries sentencepiece and protobuf: pip install 'vitbackbone[text]'"
        ) from error
    formats: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    proto = formats.ModelProto()
    try:
        proto.ParseFromString(read_bytes(file, limit))
    except DecodeError as error:
        raise ValueError(f"{file} is not a sentencepiece model ({error}); download it again") from error
    if proto.trainer_spec.model_type not in (UNIGRAM, BPE):
        raise ValueError(f"{file} has model_type={proto.trainer_spec.model_type}; want unigram (1) or BPE (2)")
    if proto.trainer_spec.treat_whitespace_as_suffix and proto.normalizer_spec.add_dummy_prefix:
        raise ValueError(
            f"{file} has treat_whitespace_as_suffix=True with add_dummy_prefix=True, and the library tokenizers cannot "
            "put a space after a text; train the model without one of them, or give tokenizer.json"
        )
    return proto


def _model(proto: Any, pieces: Sequence[tuple[str, float]], unknown: int, symbols: bool) -> "Tokenizer":
    """Return the tokenizer without a normalisation. `symbols`: whether some pieces of a text are whole symbols."""
    from tokenizers import Tokenizer, models

    fallback = bool(proto.trainer_spec.byte_fallback)
    if proto.trainer_spec.model_type == UNIGRAM:
        return Tokenizer(models.Unigram(list(pieces), unk_id=unknown, byte_fallback=fallback))
    ids = {piece: index for index, (piece, _) in enumerate(pieces)}
    merged = {piece.piece for piece in proto.pieces if piece.type in (NORMAL, USER_DEFINED)}
    merges = _merges([(piece, score) for piece, score in pieces if piece in merged], ids)
    unk_token = pieces[unknown][0]
    model = models.BPE(ids, merges, unk_token=unk_token, fuse_unk=True, byte_fallback=fallback, ignore_merges=symbols)
    return Tokenizer(model)


def _merges(pieces: Sequence[tuple[str, float]], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Return the pairs that make each piece, the highest score first."""
    found = []
    for piece, score in pieces:
        pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = [(left, right) for left, right in pairs if left in ids and right in ids]
        found += [(-score, pair) for pair in sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))]
    return [pair for _, pair in sorted(found, key=lambda each: each[0])]


def _inside_text(spec: Any, symbols: Sequence[str]) -> set[str]:
    """Return the symbols that are found in the normalised text. The others are found before, and part the text.

    sentencepiece normalises a text with its symbols, which stay as they are. A library's added token parts the text
    instead, and each part gets a space in front and loses its spaces at the ends.
    """
    if not (spec.precompiled_charsmap or spec.add_dummy_prefix or spec.remove_extra_whitespaces):
        return set()
    normalizer, front = _normalizer(spec), _space(spec) * spec.add_dummy_prefix
    return {name for name in symbols if normalizer.normalize_str(name) == front + name}


def _prepare(tokenizer: "Tokenizer", spec: Any, inside: set[str]) -> None:
    """Set what happens to a text before the model sees it. `inside`: the symbols that stay whole in it."""
    from tokenizers import Regex, decoders, pre_tokenizers

    space = _space(spec)
    tokenizer.normalizer = _normalizer(spec)
    if inside:
        longest_first = sorted(inside, key=lambda name: (-len(name), name))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, longest_first))), "isolated")
    parts: list[Any] = [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else parts)


def _space(spec: Any) -> str:
    """Return the character that replaces a space."""
    return SPACE if spec.escape_whitespaces else " "


def _normalizer(spec: Any) -> Any:
    """Return the normalisation of texts, in the order of sentencepiece's `Normalizer`."""
    from tokenizers import Regex, normalizers

    space = _space(spec)
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(space))
    steps.append(normalizers.Replace(" ", space))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"{space}+\z"), ""))
    return normalizers.Sequence(steps)


def _add(tokenizer: "Tokenizer", special: Sequence[str], whole: Sequence[str]) -> None:
    """Add the pieces that are not text, and those that stay whole."""
    from tokenizers import AddedToken

    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in dict.fromkeys(special)])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in whole])


def _surround(tokenizer: "Tokenizer", start: str, end: str, file: Path) -> None:
    from tokenizers import processors

    names = [name for name in (start, end) if name]
    if missing := [name for name in names if tokenizer.token_to_id(name) is None]:
        raise ValueError(f"{file} has no piece {missing[0]!r}, which begins or ends a text; download it again")
    single = " ".join(name for name in (start, "$A", end) if name)
    ids = [(name, tokenizer.token_to_id(name)) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
