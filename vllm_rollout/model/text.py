"""Text from outside (servers, pods, calendars), made fit to be shown and kept."""

import re
from typing import NewType

Printable = NewType("Printable", str)
"""Text from outside that `shown` has made: one line, of a stated length, without instructions to
a terminal."""

NOTHING = Printable("")
LONGEST = 300

# What a terminal or a parser could take for an instruction: control characters but tab and
# newline, line separators, text-direction overrides, and halves of surrogate pairs, which UTF-8
# cannot hold.
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def printable(text: str) -> str:
    """`text` with control characters, bidirectional overrides and lone surrogates shown as �."""
    return _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """`text` made printable, on one line."""
    return " ".join(printable(text).split())


def shown(text: str, longest: int = LONGEST) -> Printable:
    """Text from outside on one printable line of at most `longest` characters."""
    # Cut first: the rest may be any size, and no character becomes more than one.
    line = one_line(text[: longest + 1])
    cut = len(text) > longest
    return Printable(line[: longest - 2] + " …" if cut else line)


def public_address(url: str) -> Printable:
    """Scheme, host and port of a URL: its path and query may hold a token."""
    found = re.match(r"(?:[^/?#\s]*://)?[^/?#\\\s]*", url)
    return shown(re.sub(r"(//|^)[^/]*@", r"\1", found.group() if found else ""))
