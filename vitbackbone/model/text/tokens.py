"""Texts to token ids, as upstream cleans, cuts and pads them.

Axes: `B` texts, `N` tokens of a text.
"""

import html
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vitbackbone.files import SHORT

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Cleaning = Literal["none", "siglip", "whitespace", "lower", "canonicalize", "big_vision"]
PadSide = Literal["left", "right"]


class Tokens(NamedTuple):
    """The ids of texts, and where they are not padding."""

    ids: Int[Tensor, "B N"]
    mask: Bool[Tensor, "B N"]


@dataclass(frozen=True)
class Padding:
    """The way in which the texts of a batch get one length."""

    id: int
    token: str
    side: PadSide = "right"
    whole: bool = False  # whether every text gets the full length; otherwise the longest of a batch decides


class TextTokenizer:
    """A tokenizer of the `tokenizers` library, with the cleaning, the cut and the padding of a checkpoint.

    `length`: the most tokens of a text. A longer text is cut at its end, and keeps the end token.
    `cleaning`: what happens to a text first; see `CLEANINGS`.
    `emptied`: the id of a token that becomes 0 after all (open_clip's `strip_sep_token`), or None.
    `by_id`: whether every token with the id of padding counts as padding, where texts hold its name, too.
    """

    def __init__(
        self,
        backend: "Tokenizer",
        length: int,
        padding: Padding,
        cleaning: Cleaning = "none",
        emptied: int | None = None,
        by_id: bool = False,
    ) -> None:
        self.backend = backend
        self.length = length
        self.padding = padding
        self.cleaning = cleaning
        self.emptied = emptied
        self.by_id = by_id
        if length <= backend.num_special_tokens_to_add(False):
            raise ValueError(f"texts of {length} tokens have no room beside the tokenizer's own tokens")
        backend.enable_truncation(length)
        backend.enable_padding(
            direction=padding.side,
            pad_id=padding.id,
            pad_token=padding.token,
            length=length if padding.whole else None,
        )

    def __call__(self, texts: str | Sequence[str]) -> Tokens:
        """Return the ids of one text or several. Raises `ValueError` if there is none, or if one is not text."""
        given, texts = texts, [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, Sequence) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"texts={SHORT.repr(given)}; want a text, or a list of at least one text")
        clean = CLEANINGS[self.cleaning]
        found = self.backend.encode_batch([clean(_encodable(text)) for text in texts])
        ids = torch.tensor([each.ids for each in found], dtype=torch.long).reshape(len(texts), -1)
        mask = torch.tensor([each.attention_mask for each in found], dtype=torch.bool).reshape(len(texts), -1)
        ids = ids if self.emptied is None else ids.masked_fill(ids == self.emptied, 0)
        return Tokens(ids, ids != self.padding.id if self.by_id else mask)


def _encodable(text: str) -> str:
    """Replace lone surrogates, which no tokenizer can encode."""
    return text.encode(errors="replace").decode()


def _basic(text: str) -> str:
    """Repair wrongly decoded text and HTML entities (openai/CLIP, clip/simple_tokenizer.py, `basic_clean`)."""
    try:
        import ftfy
    except ImportError as error:
        raise ImportError("this checkpoint cleans texts with ftfy: pip install 'vitbackbone[text]'") from error
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def _words(text: str) -> str:
    return " ".join(text.split())


def _without_punctuation(text: str) -> str:
    return text.translate(str.maketrans("", "", string.punctuation))


CLEANINGS: dict[Cleaning, Callable[[str], str]] = {
    "none": lambda text: text,
    # transformers, models/siglip/tokenization_siglip.py, `canonicalize_text`
    "siglip": lambda text: _words(_without_punctuation(text.lower())),
    # google-research/big_vision, evaluators/proj/image_text/prompt_engineering.py, `canonicalize_text`
    "big_vision": lambda text: _words(_without_punctuation(text.replace("_", " ")).lower()),
    # open_clip, tokenizer.py, `get_clean_fn`
    "whitespace": lambda text: _words(_basic(text)),
    "lower": lambda text: _words(_basic(text)).lower(),
    "canonicalize": lambda text: _words(_without_punctuation(_basic(text).replace("_", " ")).lower()),
}
