"""Safe text: nothing in it can control a terminal or forge a line."""

SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def escaped(name: str) -> str:
    r"""Return a file name as one printable line, different for each name, like `ls --escape`.

    Control characters, line breaks, invisible and bidirectional formatting characters, and bytes that are not UTF-8
    become `\n`, `\x1b`, `\u202e` or `\xff`; a backslash is doubled. Printable Unicode and spaces stay as they are.
    """
    return printable(name.replace("\\", r"\\"))


def printable(message: str) -> str:
    """Return a message as one printable line. Backslashes stay, because names in it are escaped already."""
    return message if message.isprintable() else "".join(c if c.isprintable() else _code(c) for c in message)


def _code(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return SHORT.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
