"""Text towers: words to vectors in the space of an image tower's pooled vectors."""

from vitbackbone.model.text.config import Scale, TextConfig, TextPool, TextPosition
from vitbackbone.model.text.prompts import PROMPT, fill
from vitbackbone.model.text.tokens import Cleaning, Padding, TextTokenizer, Tokens
from vitbackbone.model.text.tower import TextTower
from vitbackbone.model.text.transformer import TextTransformer

__all__ = [
    "PROMPT",
    "Cleaning",
    "Padding",
    "Scale",
    "TextConfig",
    "TextPool",
    "TextPosition",
    "TextTokenizer",
    "TextTower",
    "TextTransformer",
    "Tokens",
    "fill",
]
