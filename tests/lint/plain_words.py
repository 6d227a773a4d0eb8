"""Holds the word list over code, messages and documentation.

    python tests/lint/plain_words.py

Reads docstrings, string literals and comments of the library, the gates and the load tests, and the
Markdown documentation. Prints each word to replace as file:line with its replacement, and exits
with 1 if there is one. A word that also has an ordinary use is matched by a narrower pattern.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("vllm_rollout", "gates", "loadtests")
TEXTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs")
# Not in plain words yet.
WORDS = {
    r"ail(s|ed|ing)?": "fail, or name the error",
    r"mend(s|ed|ing)?": "fix",
    r"whither": "where",
    r"anew": "again, restart",
    r"as ever": "as before, always",
    r"surely": "certainly, or the confidence",
    r"in vain": "without success",
    r"of a mere": "of a plain",
    r"for people": "readable, for the team",
    r"by other hands": "manual, by somebody else",
    r"gone back": "rolled back",
    # "looks at", "looks for" and "looks like" are verbs.
    r"(an?|the|each|every|one|no|any|its|first|last|next|all|more) looks?(?!-)": "probe, reading",
    r"looks(?! (at|for|up|into|like)\b)": "probe, reading",
    r"sights?": "observation",
    r"troubles?": "problem, error",
    r"told": "reported, given",
    r"said": "reported, stated",
    r"taken for": "treated as",
    # "a way to do something" is no network path.
    r"ways? (to|from|into|through) (an?|the|its?|each|every|one|this|that|them|their)": "path",
    r"(?<!half\s)(?<!under\s)way in": "address, or path",
    r"the way there": "path, connection",
    r"on (the|its|their) way": "in transit, in between",
}
_WORDS = [
    (re.compile(r"\b(" + word.replace(" ", r"\s+") + r")\b", re.IGNORECASE), use)
    for word, use in WORDS.items()
]
_RIDDLE = re.compile(r"(What|Who|Whether)\b")


def found_in(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield each listed word as lines after the first, the word, and what to use instead."""
    for pattern, use in _WORDS:
        for match in pattern.finditer(text):
            word = " ".join(match.group().split())
            yield text.count("\n", 0, match.start()), word, use


def found_in_code(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the word and its replacement in docstrings, strings and comments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for line, word, use in found_in(node.value):
                yield node.lineno + line, word, use
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            riddle = _RIDDLE.match(ast.get_docstring(node) or "")
            if riddle:
                yield node.body[0].lineno, riddle.group(), "a noun phrase or an imperative"
    for first, comment in _comments(source):
        for line, word, use in found_in(comment):
            yield first + line, word, use


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield each comment with its first line; lines that follow each other are one comment."""
    first, lines = 0, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if lines and token.start[0] != first + len(lines):
            yield first, "\n".join(lines)
            lines = []
        if not lines:
            first = token.start[0]
        lines.append(token.string.lstrip("# "))
    if lines:
        yield first, "\n".join(lines)


def check(root: Path) -> list[str]:
    """Return every word to replace under `root`, as one line each."""
    problems = []
    for path in _files(root):
        name = path.relative_to(root).as_posix()
        text = path.read_text()
        if path.suffix == ".py":
            found = set(found_in_code(text))
        else:
            found = {(line + 1, word, use) for line, word, use in found_in(text)}
        problems += [f"{name}:{line}: {word!r}: use {use}" for line, word, use in sorted(found)]
    return problems


def _files(root: Path) -> list[Path]:
    code = [path for package in CODE for path in (root / package).rglob("*.py")]
    texts = [path for text in TEXTS for path in (root / text).rglob("*.md")]
    pages = [root / text for text in TEXTS if text.endswith(".md")]
    return sorted(path for path in code + texts + pages if "_bundled" not in path.parts)


if __name__ == "__main__":
    lines = check(ROOT)
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.exit(bool(lines))
