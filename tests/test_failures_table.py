"""docs/explanation/failures.md names the test that holds each row: each is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "docs/explanation/failures.md").read_text()
NAMED = re.split(r"`(tests/[\w/]+\.py)`", TABLE)[1:]
FILES = list(zip(NAMED[::2], NAMED[1::2], strict=True))


@pytest.mark.parametrize(("file", "said"), FILES)
def test_what_a_row_names_is_there(file: str, said: str) -> None:
    text = (ROOT / file).read_text()
    assert "\ndef test_" in text
    for part in re.findall("`…([^`…]+)…?`", said):
        assert part in text


def test_the_table_is_read() -> None:
    assert len(FILES) > 20
