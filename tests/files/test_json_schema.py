"""JSON from outside: every fault is one `ValueError` or `OSError` that names the file and the key."""

import os
from dataclasses import dataclass
from typing import Annotated

import pytest
from pydantic import Field

from vitbackbone.files.json_schema import MOST_LINES, Record, parse_json, read_json


class Sizes(Record):
    width: Annotated[int, Field(ge=1, le=100)]
    rate: float = 0.5
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plain:
    width: Annotated[int, Field(ge=1, le=100)]
    rate: float = 0.5
    names: tuple[str, ...] = ()


SCHEMAS = pytest.mark.parametrize("schema", [Sizes, Plain])

WRONG_VALUES = {  # the text, and the key that the error names
    '{"width": 0}': "width=0",
    '{"width": 101}': "width=101",
    '{"width": -1}': "width=-1",
    '{"width": true}': "width=True",
    '{"width": 2.0}': "width=2.0",
    '{"width": "2"}': "width='2'",
    '{"width": null}': "width=None",
    '{"width": [2]}': "width=[2]",
    '{"width": 1e999}': "width=inf",
    '{"width": 1, "rate": NaN}': "rate=nan",
    '{"width": 1, "rate": -Infinity}': "rate=-inf",
    '{"width": 1, "rate": 1e999}': "rate=inf",
    '{"width": 1, "other": [[1, NaN]]}': "other=nan",
    '{"width": 1, "rate": true}': "rate=True",
    '{"width": 1, "names": "ab"}': "names='ab'",
    '{"width": 1, "names": ["a", 2]}': "names.1=2",
    '{"width": 1, "width": 2}': "'width' twice",
    '{"width": 1, "other": {"a": 1, "a": 1}}': "'a' twice",
    "{}": "width",
    f'{{"width": 1{"0" * 400}}}': "width=",
}
NO_RECORD = {
    "empty": b"",
    "cut": b'{"width": 1',
    "a list": b"[]",
    "a word": b'"width"',
    "a number": b"1",
    "null": b"null",
    "NaN": b"NaN",
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "nested under an unknown key": b'{"width": 1, "a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "not UTF-8": b'{"width": 1, "a": "\xff"}',
    "UTF-16": '{"width": 1}'.encode("utf-16"),
    "a lone surrogate": b'{"width": 1, "a": "\\ud800"}',
    "a long number": b'{"width": 1' + b"0" * 5000 + b"}",
    "two objects": b'{"width": 1}{"width": 1}',
    "zeros": bytes(100),
}


@SCHEMAS
def test_a_whole_file_is_a_record_of_the_types_that_its_schema_says(tmp_path, schema) -> None:
    (tmp_path / "a.json").write_text('{"width": 3, "rate": 1, "names": ["a"], "unknown": [1]}')
    assert read_json(tmp_path / "a.json", schema) == schema(width=3, rate=1.0, names=("a",))


@SCHEMAS
@pytest.mark.parametrize(("text", "key"), WRONG_VALUES.items())
def test_a_wrong_value_is_named_with_its_key_and_file(schema, text, key) -> None:
    with pytest.raises(ValueError, match="some.json") as caught:
        parse_json(text.encode(), schema, "some.json")
    assert type(caught.value) is ValueError
    assert key in str(caught.value)
    assert len(str(caught.value)) < 300


@SCHEMAS
@pytest.mark.parametrize("data", NO_RECORD.values(), ids=NO_RECORD)
def test_what_is_no_record_is_said_with_the_file_and_at_no_length(schema, data) -> None:
    with pytest.raises(ValueError, match="some.json") as caught:
        parse_json(data, schema, "some.json")
    assert type(caught.value) is ValueError
    assert len(str(caught.value)) < 400


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(ValueError, match="width=0[^$]*rate='x'[^$]*names=1"):
        parse_json(b'{"width": 0, "rate": "x", "names": 1}', Sizes, "some.json")


def test_a_long_list_of_wrong_values_is_cut() -> None:
    with pytest.raises(ValueError, match="992 more") as caught:
        parse_json(b'{"width": 1, "names": [' + b",".join([b"1"] * 1000) + b"]}", Sizes, "some.json")
    assert str(caught.value).count("\n") == MOST_LINES + 1


def test_a_key_of_another_is_shown_without_its_control_characters() -> None:
    class Counts(Record):
        counts: dict[str, int]

    with pytest.raises(ValueError, match=r"x1b") as caught:
        parse_json(b'{"counts": {"\\u001b[31mred": "x"}}', Counts, "some.json")
    assert "\x1b" not in str(caught.value)


def test_keys_that_a_schema_forbids_are_refused() -> None:
    class Closed(Sizes, extra="forbid"):
        pass

    with pytest.raises(ValueError, match="depht=3"):
        parse_json(b'{"width": 1, "depht": 3}', Closed, "some.json")


def test_what_is_no_plain_file_is_an_os_error_and_nobody_waits(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    for name in ("pipe.json", "folder.json", "loop.json", "none.json"):
        with pytest.raises(OSError, match=name):
            read_json(tmp_path / name, Sizes)


def test_a_file_too_large_for_its_kind_is_not_read_whole(tmp_path) -> None:
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="huge.json has more than"):
        read_json(tmp_path / "huge.json", Sizes)
