"""docs/explanation/failures.md names the tests that hold each row, and the tiers that run them."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from _pytest.mark.expression import Expression

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "docs/explanation/failures.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|\n ").split(" | ")]
    for line in TABLE.splitlines()
    if line.startswith("| ") and not line.startswith("| what")
]
TIERS = ("test", "test-all", "test-exhaustive")


def named(shown_by: str) -> list[tuple[str, str]]:
    """The tests that a row names: a file, and a part of their names or ""."""
    file_and_said = re.split(r"`(tests/[\w/]+\.py)`", shown_by)[1:]
    return [
        (file, part)
        for file, said in zip(file_and_said[::2], file_and_said[1::2], strict=True)
        for part in re.findall("`…([^`…]+)…?`", said) or [""]
    ]


def tier_of() -> dict[str, str]:
    """The first tier that runs each test of the files that are named, as its command selects."""
    files = sorted({file for row in ROWS for file, _ in named(row[2])})
    words = ["--collect-only", "-qq", "-p", "no:cacheprovider", "-p", "support.listing", *files]
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert collected.returncode == 0, collected.stdout + collected.stderr
    listed = next(line for line in collected.stdout.splitlines() if line.startswith("{"))
    selected = {tier: selection(tier) for tier in TIERS}
    return {
        test: next(tier for tier in TIERS if selected[tier](set(marks)))
        for test, marks in json.loads(listed).items()
    }


def selection(tier: str) -> Callable[[set[str]], bool]:
    """Whether the tier's command selects a test with these marks."""
    command = subprocess.run(["make", "-n", tier], cwd=ROOT, capture_output=True, text=True).stdout
    assert "-m pytest" in command
    chosen = re.findall('-m "(.+)"', command)
    each = [Expression.compile(expression) for expression in chosen]
    return lambda marks: all(e.evaluate(lambda name, **_: name in marks) for e in each)


def test_each_row_names_tests_and_the_tiers_that_run_them() -> None:
    assert len(ROWS) > 20
    tiers = tier_of()
    for what, _, shown_by, said in ROWS:
        first, every = set(), set()
        assert named(shown_by), what
        for file, part in named(shown_by):
            ran = {tier for test, tier in tiers.items() if test.startswith(file) and part in test}
            assert ran, f"{file} has no test …{part}…"
            first.add(min(ran, key=TIERS.index))
            every |= ran
        claimed = re.findall("`(test[a-z-]*)`", said)
        assert claimed == sorted(claimed, key=TIERS.index), what
        # That a test has more variants in the last tier is worth saying of crash cells alone.
        assert first <= set(claimed) <= first | (every & {TIERS[-1]}), what
