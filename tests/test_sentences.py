"""Sentences that people read: what reads badly aloud, in source and in what is rendered of it."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_rollout.model.units import counted, of_total

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "data" / "golden"
MAY_BE_ONE = (
    "answer|core|decision|field|gap|gate|GPU|line|pod|probe|prompt|replica|restart|revision|server"
    "|slice|token|verdict|worker"
)
BY_HAND = re.compile(
    rf" (?:more |ready )?(?:{MAY_BE_ONE})s\b(?! (?:to 1|mount|where|is not a|cannot))"
)
"""A plural after a number; but for sentences about several, or about an impossible number."""
BADLY_READ = re.compile(
    r"\b(?:None|nan|NaN|inf)\b|(?<!of )\b1 [a-z]{3,}s (?:are|were|ready|failed|answered)\b"
    r"|unknown of |\bunknown\b[^.;]*\bunknown\b|\d\.\d{8,}|\d\.\d{4,}m?s\b"
    r"|(\b\w+ \w+ \w+ \w+\b): \1|\bis held by\b"
)


def numbers_before_plurals(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.JoinedStr):
            continue
        for number, text in zip(node.values, node.values[1:], strict=False):
            if not isinstance(number, ast.FormattedValue) or names(number.value):
                continue
            if isinstance(text, ast.Constant) and BY_HAND.match(str(text.value)):
                yield f"{file.name}:{node.lineno}: {{{ast.unparse(number.value)}}}{text.value}"


def names(value: ast.expr) -> bool:
    """Return True for what is shown and is no number: the environment of its gates, a URL."""
    text = ast.unparse(value)
    return bool(re.search(r"environment|label|url|path|where|host|name|model$", text))


def test_numbers_get_their_nouns_from_one_place() -> None:
    found = [
        each
        for folder in ("vllm_rollout", "gates", "loadtests")
        for file in (ROOT / folder).rglob("*.py")
        if "simulator" not in file.parts
        for each in numbers_before_plurals(file)
    ]
    assert found == []
    assert (counted(1, "replica"), counted(3750, "replica")) == ("1 replica", "3,750 replicas")
    assert (of_total(1, 1, "pod"), of_total(0, 2, "pod")) == ("1 of 1 pod", "0 of 2 pods")


def texts_in(data: object) -> Iterator[str]:
    if isinstance(data, dict):
        for value in data.values():
            yield from texts_in(value)
    elif isinstance(data, list):
        for value in data:
            yield from texts_in(value)
    elif isinstance(data, str):
        yield data


def rendered() -> Iterator[tuple[str, str]]:
    for file in GOLDEN.glob("*.json"):
        for text in texts_in(json.loads(file.read_text(encoding="utf-8"))):
            yield file.name, text
    for file in GOLDEN.glob("*.html"):
        for text in re.findall(r">([^<>]+)<", file.read_text(encoding="utf-8")):
            yield file.name, text
    for page in (ROOT / "docs").rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^ *```text\n(.*?)```", text, re.DOTALL | re.MULTILINE):
            yield from ((page.name, line) for line in block.splitlines())


def test_what_is_rendered_reads_well_aloud() -> None:
    assert [(where, text) for where, text in rendered() if BADLY_READ.search(text)] == []


@pytest.mark.parametrize(
    "text",
    [
        "1 replicas ready",
        "busiest of 1 at unknown of a core",
        "P50 unknown, lag P99 unknown",
        "9m59.998406s",
        "3.572184589331075/s",
        "nothing answers at X: nothing answers at X",
    ],
)
def test_a_sentence_of_a_bad_kind_is_found(text: str) -> None:
    assert BADLY_READ.search(text)
