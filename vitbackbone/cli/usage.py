"""The parser of command lines. A wrong line gets a one-line answer that says what to change."""

import argparse
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import IO, Any, NoReturn, TypeAlias

from vitbackbone.cli.text import printable

NUMBERS = re.compile(r"-\d+(,-?\d+)*")
# Three names of argparse that are not public. `option_names` and the two uses below are the only ones.
# tests/cli/test_usage.py tells when argparse changes them.
Options: TypeAlias = "argparse._ActionsContainer"  # a parser, or a group of options


def option_names(parser: argparse.ArgumentParser) -> Collection[str]:
    """Return the options of a parser, such as `--json`; none if this version of argparse keeps them elsewhere."""
    return getattr(parser, "_option_string_actions", ())


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Print examples as they are written, and the default of each option after its description."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.default is not None and action.default is not False
        return super()._get_help_string(action) if shown else action.help


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations, whose errors are one line with a suggestion."""

    commands: dict[str, "Parser"] | None = None  # by name, if this parser has commands

    def __init__(self, *, examples: Sequence[str], **options: Any) -> None:
        epilog = "\n  ".join(["example:" if len(examples) == 1 else "examples:", *examples])
        super().__init__(epilog=epilog, formatter_class=_Help, allow_abbrev=False, **options)

    def print_help(self, file: IO[str] | None = None) -> None:  # type: ignore[override]
        print(self.format_help(), end="", file=file)  # argparse would drop an error of the stream

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else "."
        self.exit(2, f"{self.prog}: {printable(message)}{end} See `{self.prog} --help`\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = _joined(sys.argv[1:] if args is None else args)
        self._refuse_unknown(given)
        found, left = super().parse_known_args(given, namespace)
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            self.error(f"unexpected argument {left[0]!r}{more}; put quotes around a glob, or the shell expands it")
        return found, left

    def _refuse_unknown(self, given: Sequence[str]) -> None:
        known = option_names(self)
        for argument in given:
            if argument == "--":
                return
            if not argument.startswith("-") or argument == "-":
                if self.commands is None:
                    continue
                if argument not in self.commands:
                    self.error(f"unknown command {argument!r}{_meant(argument, self.commands)}")
                return
            name = argument.split("=")[0] if argument.startswith("--") else argument[:2]
            if known and name not in known and not NUMBERS.fullmatch(argument):
                self.error(f"unknown option {argument.split('=')[0]!r}{_meant(argument, known)}")
        if self.commands and not given:
            self.error(f"want a command: {', '.join(self.commands)}")


def _joined(arguments: Sequence[str]) -> list[str]:
    """Return `--layers -4,-1` as `--layers=-4,-1`, because argparse takes a value with a dash for an option."""
    joined: list[str] = []
    for argument in arguments:
        if NUMBERS.fullmatch(argument) and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _meant(given: str, names: Iterable[str]) -> str:
    """Return the end of a sentence that suggests the closest name, or nothing. `-o` stands for `--out`."""
    from vitbackbone.files import did_you_mean

    word = given.split("=")[0]
    letter = re.fullmatch(r"-(\w)", word)
    start = f"--{letter[1]}" if letter else word
    longer = [name for name in names if start.strip("-") and name.startswith(start)]
    if longer:
        return did_you_mean(longer[0], longer, most=1)
    return "" if letter else did_you_mean(word, names, most=1)
