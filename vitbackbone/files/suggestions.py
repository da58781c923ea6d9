"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str], most: int = 3) -> str:
    """Return ", did you mean 'this'?" with up to `most` similar names, or nothing if no known name is close."""
    close = difflib.get_close_matches(str(name), list(known), n=most, cutoff=0.5)
    return f", did you mean {' or '.join(map(repr, close))}?" if close else ""
