"""Sample outputs of the documentation, held against what the code prints."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
_RUN = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
_HOLDER = re.compile(r"[\w.-]+:\d+:[0-9a-f]{8}\b")
_DURATIONS = re.compile(r"\b(?:\d+[hm])*\d[\d.]*m?s\b|\b\d+[hm]\b")
_NUMBERS = re.compile(r"[0-9a-f]{8,}|\d[\d.,:]*")
_OPTIONS = re.compile(r" --(policy|set) \S+")


def sample(page: str, heading: str) -> list[str]:
    """The lines of the outputs in a section.

    Without commands and what is left out, and without lines of progress: whether there is one of
    those is a matter of time.
    """
    text = (DOCS / page).read_text(encoding="utf-8")
    text = re.sub(r"^ *```(?!text)\w+\n.*?```", "", text, flags=re.DOTALL | re.MULTILINE)
    section = re.split(r"^#+ ", text.partition(f"# {heading}\n")[2], flags=re.MULTILINE)[0]
    shown = "\n".join(re.findall(r"^ *```text\n(.*?)```", section, re.DOTALL | re.MULTILINE))
    lines = [
        line.strip()
        for line in shown.splitlines()
        if line.strip(" …") and not re.match(r"\$ |\*\*\*| *(watching|load) \S+: ", line)
    ]
    assert lines, f"{page} has no output below {heading!r}"
    return lines


def not_printed(shown: list[str], printed: str) -> list[str]:
    """The lines that nothing printed looks like, but for numbers, digests and `…`."""
    there = {_form(line) for line in printed.splitlines()}
    return [
        line
        for line in shown
        if not any(re.fullmatch(re.escape(_form(line)).replace("…", ".*"), each) for each in there)
    ]


def _form(line: str) -> str:
    """A line with `#` for each number, one space or rule for several, and no options of its run."""
    numbered = _OPTIONS.sub("", line)
    for pattern in (_HOLDER, _RUN, _DURATIONS, _NUMBERS):
        numbered = pattern.sub("#", numbered)
    return re.sub(r"([ ━─]){2,}", r"\1", numbered).replace("replicas", "replica").strip()
