"""The parser of command lines: a wrong one is answered by one line that says what to change."""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from vitbackbone.cli.text import printable

NUMBERS = re.compile(r"-\d+(,-?\d+)*")


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Examples as they are written, and defaults behind what an option says."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations, whose errors are one line with a suggestion."""

    commands: dict[str, "Parser"] | None = None  # by name, if this parser has commands

    def __init__(self, *, examples: Sequence[str], **options: Any) -> None:
        epilog = "\n  ".join(["example:" if len(examples) == 1 else "examples:", *examples])
        super().__init__(epilog=epilog, formatter_class=_Help, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else "."
        self.exit(2, f"{self.prog}: {printable(message)}{end} See `{self.prog} --help`\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = _joined(sys.argv[1:] if args is None else args)
        self._refuse_unknown(given)
        found, left = super().parse_known_args(given, namespace)
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            self.error(f"unexpected argument {left[0]!r}{more}; quote a glob so that the shell leaves it as it is")
        return found, left

    def _refuse_unknown(self, given: Sequence[str]) -> None:
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
            if name not in self._option_string_actions and not NUMBERS.fullmatch(argument):
                self.error(f"unknown option {argument.split('=')[0]!r}{_meant(argument, self._option_string_actions)}")
        if self.commands and not given:
            self.error(f"want a command: {', '.join(self.commands)}")


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--layers -4,-1` as `--layers=-4,-1`: argparse takes a value that begins with a dash for an option."""
    joined: list[str] = []
    for argument in arguments:
        if NUMBERS.fullmatch(argument) and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _meant(given: str, names: Iterable[str]) -> str:
    """Return the name that was probably meant, as the end of a sentence."""
    word = given.split("=")[0]
    longer = [name for name in names if word.strip("-") and name.startswith(word)]
    close = longer or get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
