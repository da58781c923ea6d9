"""Sentences for errors."""

import sys
import tempfile
import traceback
from pathlib import Path

from vitbackbone.cli.text import escaped, printable

EXPECTED = (ValueError, OSError, ImportError, MemoryError)
NO_MEMORY = "memory ran out; use a smaller --batch-size, --resolution or model"
# torch and safetensors raise a RuntimeError or an Exception for these: only its text tells the cause.
IN_OTHER_WORDS = {
    "DefaultCPUAllocator": NO_MEMORY,
    "not enough memory": NO_MEMORY,
    "out of memory": NO_MEMORY,
    "File too large": "File too large: this shell (`ulimit -f`) or the file system allows no larger file",
    "No space left": "No space left on device: the disk is full",
}


def sentence(error: BaseException) -> str:
    """Return one printable line that says what went wrong."""
    if isinstance(error, MemoryError):
        return NO_MEMORY
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    reason = next((words for part, words in IN_OTHER_WORDS.items() if part in text), printable(text))
    if isinstance(error, OSError) and error.filename:
        return f"{escaped(str(error.filename))}: {reason}"
    return reason if expected(error) else f"{type(error).__name__}: {reason}"


def expected(error: BaseException) -> bool:
    """Return whether the user's input or machine caused an exception, and not a fault of the program."""
    return isinstance(error, EXPECTED) or any(part in str(error) for part in IN_OTHER_WORDS)


def printed_traceback(error: BaseException) -> str:
    """Return the traceback as lines that are safe to print."""
    return "\n".join(printable(line) for line in "".join(traceback.format_exception(error)).rstrip("\n").split("\n"))


def keep_traceback(error: BaseException) -> Path:
    """Write the traceback into a file, because the fault may have taken hours to appear, and return the file."""
    lines = [*traceback.format_exception(error), f"\narguments: {sys.argv[1:]!a}\n"]
    with tempfile.NamedTemporaryFile("w", prefix="vitbackbone-", suffix=".txt", delete=False, encoding="utf-8") as file:
        file.write("".join(lines).encode(errors="backslashreplace").decode())
    return Path(file.name)
