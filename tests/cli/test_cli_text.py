"""No file name makes a command print text that steers a terminal."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitbackbone.cli.text import escaped, printable

NAMES = {
    "photo.jpg": "photo.jpg",
    "Größe 日本語 😀 été.jpg": "Größe 日本語 😀 été.jpg",
    "\x1b]0;title\x07\x1b[2J.jpg": r"\x1b]0;title\x07\x1b[2J.jpg",
    "a\n99 images read\r.jpg": r"a\n99 images read\r.jpg",
    "tab\there": r"tab\there",
    "back\\slash\\n": r"back\\slash\\n",
    "gpj.\u202eexe": r"gpj.\u202eexe",
    "\u2066iso\u2069": r"\u2066iso\u2069",
    "\u2028line\u2029paragraph\x85next": r"\u2028line\u2029paragraph\u0085next",
    "c1\x9b2J": r"c1\u009b2J",
    "zero\u200bwidth\ufeff": r"zero\u200bwidth\ufeff",
    b"latin-1 \xe9\xff.jpg".decode(errors="surrogateescape"): r"latin-1 \xe9\xff.jpg",
    "lone \ud800": r"lone \ud800",
    "tag \U000e0041": r"tag \U000e0041",
    "": "",
}


@pytest.mark.parametrize(("name", "shown"), NAMES.items(), ids=ascii)
def test_a_name_is_one_printable_line(name: str, shown: str) -> None:
    assert escaped(name) == shown


def test_no_character_of_unicode_gets_through_that_a_terminal_obeys() -> None:
    shown = escaped("".join(map(chr, range(sys.maxunicode + 1))))
    shown.encode()  # no lone surrogate
    assert not {c for c in set(shown) if unicodedata.category(c)[0] in "CZ"} - {" "}


@given(st.text(), st.text())
def test_two_names_never_look_the_same(one: str, other: str) -> None:
    assert (escaped(one) == escaped(other)) == (one == other)


@given(st.text(st.characters()))
def test_a_message_may_hold_names_that_are_escaped(name: str) -> None:
    assert printable(f"{escaped(name)}: no such file") == f"{escaped(name)}: no such file"
