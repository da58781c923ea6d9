"""The parser: private names of argparse that it reads, help without noise, and answers that need no library."""

import subprocess
import sys

import pytest

from vitbackbone.cli import main
from vitbackbone.cli.arguments import parser
from vitbackbone.cli.usage import option_names

HEAVY = ["torch", "numpy", "pyarrow", "PIL"]
LINES = [
    ["--version"],
    ["--help"],
    [],
    ["nothing"],
    ["extract"],
    ["extract", "photos", "--out", "x", "--nothing"],
    ["extract", "photos", "--out", "x", "--layers", "a"],
    ["extract", "photos", "--out", "x", "--device", "gpu"],
]


def test_argparse_has_the_private_names_that_the_parser_reads() -> None:
    why = "argparse has changed: look at `option_names`, `Options` and `_Help` in vitbackbone/cli/usage.py"
    assert {"-h", "--help", "--version", "-q"} <= set(option_names(parser())), why
    text = parser().commands["extract"].format_help()
    assert "(default: nano)" in text, why
    assert "(default: 0)" in text, why
    assert "(default: None)" not in text, why
    assert "(default: False)" not in text, why


def test_a_wrong_option_is_one_line_even_if_argparse_hides_its_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vitbackbone.cli.usage.option_names", lambda _: ())
    with pytest.raises(SystemExit, match="2"):
        main(["verify", "store", "--jsn"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "unexpected argument '--jsn'" in line


def test_help_and_mistakes_need_no_large_library() -> None:
    lines = LINES + [[command, "--help"] for command in parser().commands]
    code = f"""
import sys
from vitbackbone.cli import main
for line in {lines!r}:
    try:
        main(line)
    except SystemExit:
        pass
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    assert not loaded, (line, loaded)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
