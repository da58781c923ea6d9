"""Reading tokenizers from the files beside a checkpoint: `tokenizer.json`, CLIP's vocabulary and merges, or others."""

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from vitbackbone.checkpoints.text.sentencepieces import read_sentencepieces
from vitbackbone.files import SHORT, Record, read_bytes, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Find = Callable[[str], Path | None]  # the path of a file beside the checkpoint, or None

TOKENIZER, SETTINGS, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
PIECES = "vocab.txt"  # BERT's, one a line
OPEN_CLIP_MERGES = "bpe_simple_vocab_16e6.txt.gz"  # openai/CLIP and open_clip ship it
SENTENCEPIECE = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
ALONE = (TOKENIZER, PIECES, OPEN_CLIP_MERGES, *SENTENCEPIECE)  # files that are a whole tokenizer
LIMIT = 1 << 28  # bytes of a tokenizer; the 900,000 words of XLM-V have 60 MB
CLIP_MERGES = 49152 - 256 - 2  # lines of OPEN_CLIP_MERGES that are used
START, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def _content(value: Any) -> Any:
    """Return the text of a token, which may stand in an object with its options."""
    return value.get("content") if isinstance(value, Mapping) else value


class TokenizerSettings(Record):
    """`tokenizer_config.json`."""

    tokenizer_class: str | None = None
    pad_token: Annotated[str | None, BeforeValidator(_content)] = None
    padding_side: Literal["left", "right"] | None = None
    model_max_length: Annotated[float, Field(ge=1)] | None = None  # 1e30 means that there is no limit
    model_input_names: tuple[str, ...] | None = None
    sep_token: Annotated[str | None, BeforeValidator(_content)] = None
    do_lower_case: bool | None = None
    add_bos_token: bool = False
    add_eos_token: bool = False


class _SpecialTokens(Record):
    pad_token: Annotated[str | None, BeforeValidator(_content)] = None
    sep_token: Annotated[str | None, BeforeValidator(_content)] = None


def read_tokenizer_settings(find: Find) -> TokenizerSettings:
    """Return the settings of a tokenizer, or the defaults if there is no file. Raises `ValueError` on wrong values."""
    file, special = find(SETTINGS), find(SPECIAL)
    settings = read_json(file, TokenizerSettings) if file else TokenizerSettings()
    if special:  # older files have the tokens apart
        apart = read_json(special, _SpecialTokens)
        pad, sep = settings.pad_token or apart.pad_token, settings.sep_token or apart.sep_token
        settings = settings.model_copy(update={"pad_token": pad, "sep_token": sep})
    return settings


def read_tokenizer(find: Find, where: str, kind: str = "") -> "Tokenizer":
    """Return the tokenizer of the files that `find` finds. `where` names their place in errors, and `kind` is the class
    of the tokenizer.

    Raises `ValueError` if there is none, or if a file is damaged, and `ImportError` without the library.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError("texts need the library tokenizers: pip install 'vitbackbone[text]'") from error
    if file := find(TOKENIZER):
        data = read_bytes(file, LIMIT)
        try:
            return Tokenizer.from_buffer(data)
        except Exception as error:  # the library has no error type of its own
            raise ValueError(f"{file} is not a tokenizer that the library tokenizers reads: {error}") from error
    if (vocabulary := find(VOCABULARY)) and (merges := find(MERGES)):
        return _built(_read_vocabulary(vocabulary), _pairs(merges, read_bytes(merges, LIMIT)), merges)
    if pieces := find(PIECES):
        return _read_pieces(pieces, read_tokenizer_settings(find).do_lower_case is not False)
    if model := next(filter(None, map(find, SENTENCEPIECE)), None):
        settings = read_tokenizer_settings(find)
        return read_sentencepieces(model, kind, LIMIT, settings.add_bos_token, settings.add_eos_token)
    if packed := find(OPEN_CLIP_MERGES):
        return _read_packed(packed)
    wanted = (TOKENIZER, f"{VOCABULARY} with {MERGES}", PIECES, OPEN_CLIP_MERGES, *SENTENCEPIECE)
    raise ValueError(f"{where} has no tokenizer: want {', '.join(wanted)}; or give tokenizer=PATH")


def _read_vocabulary(file: Path) -> dict[str, int]:
    words: dict[str, Any] = read_json(file, dict, LIMIT)
    if wrong := next((word for word, index in words.items() if type(index) is not int or index < 0), None):
        raise ValueError(f"{file} has {SHORT.repr(wrong)}: {SHORT.repr(words[wrong])}; want the number of each word")
    return words


def _read_pieces(file: Path, lower: bool) -> "Tokenizer":
    """Build BERT's tokenizer from its vocabulary (transformers, models/bert/tokenization_bert.py)."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece

    try:
        words = read_bytes(file, LIMIT).decode().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error}); download it again") from error
    vocabulary = {word: index for index, word in enumerate(words)}
    if missing := [token for token in ("[UNK]", "[CLS]", "[SEP]", "[PAD]") if token not in vocabulary]:
        raise ValueError(f"{file} has no {missing[0]}; want a vocabulary of BERT, a word a line")
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", *(["[MASK]"] if "[MASK]" in vocabulary else [])])
    ends = (("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return tokenizer


def _read_packed(file: Path) -> "Tokenizer":
    """Read open_clip's compressed list of merges, from which the vocabulary follows."""
    try:
        with gzip.open(file) as opened:
            data = opened.read(LIMIT)
    except (OSError, EOFError) as error:
        raise ValueError(f"{file} is not a whole gzip file ({error}); download it again") from error
    merges = _pairs(file, data)[:CLIP_MERGES]
    letters = _letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), START, END]
    return _built({word: index for index, word in enumerate(words)}, merges, file)


def _pairs(file: Path, data: bytes) -> list[tuple[str, str]]:
    """Return the pairs of a list of merges, one a line behind a line about the version."""
    try:
        _, *lines = data.decode().splitlines() if data.startswith((b"#", b'"')) else ["", *data.decode().splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error}); download it again") from error
    pairs = [tuple(line.split()) for line in lines if line.strip()]
    for number, pair in enumerate(pairs):
        if len(pair) != 2:
            raise ValueError(f"{file} has {SHORT.repr(' '.join(pair))} as merge {number}; want two words")
    return [(pair[0], pair[1]) for pair in pairs]


def _built(vocabulary: Mapping[str, int], merges: list[tuple[str, str]], file: Path) -> "Tokenizer":
    """Build CLIP's tokenizer (transformers, models/clip/tokenization_clip.py)."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    if missing := [token for token in (START, END) if token not in vocabulary]:
        raise ValueError(f"{file.parent} has a vocabulary without {missing[0]}; want CLIP's")
    try:
        model = BPE(dict(vocabulary), merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END)
    except Exception as error:  # the library has no error type of its own
        raise ValueError(f"{file} does not fit its vocabulary: {error}") from error
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(SPECIAL_WORDS + WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([START, END])
    end, start = (END, vocabulary[END]), (START, vocabulary[START])
    tokenizer.post_processor = processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)
    return tokenizer


def _letters() -> list[str]:
    """Return the printable letter of each byte, in the order of CLIP's vocabulary (openai/gpt-2, src/encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]


def cleaned_before(tokenizer: "Tokenizer") -> "Tokenizer":
    """Return CLIP's tokenizer for cleaned texts, as open_clip has it. It changes no letter, and it reads the names of
    its special tokens as ordinary words."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.Sequence([])
    split = pre_tokenizers.Split(Regex(f"(?i:{WORDS})"), behavior="removed", invert=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # a regex of its own would cut again
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    tokenizer.encode_special_tokens = True
    return tokenizer


def lowered(tokenizer: "Tokenizer") -> "Tokenizer":
    """Return a tokenizer that turns texts to lower case first, whatever its file says."""
    from tokenizers import normalizers

    normalizer = tokenizer.normalizer
    steps = json.loads(tokenizer.to_str())["normalizer"]
    if '"Lowercase"' not in json.dumps(steps):
        lower = normalizers.Lowercase()
        tokenizer.normalizer = lower if normalizer is None else normalizers.Sequence([lower, normalizer])
    return tokenizer
