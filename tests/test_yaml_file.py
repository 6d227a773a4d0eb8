"""Values files are bounded, as policy files are."""

from pathlib import Path

import pytest

from vllm_rollout.model.errors import UsageError
from vllm_rollout.yaml_file import read_mapping

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(f'*{before}' for _ in range(9))}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "holds more than 20,000 values"),
        ("a: &a [*a]", "is nested more than 30 deep"),
        ("a: " + "[" * 40 + "]" * 40, "is nested more than 30 deep"),
        ("a: " + "[" * 90_000, "is nested more than 30 deep"),
        ("a: " + "x" * 1_000_000, "has more than 1,000,000 bytes"),
        ("- a", "is not a mapping"),
        ("a: [", "is not YAML"),
        ("a: 2026-99-99", "is not YAML"),
    ],
)
def test_a_file_out_of_bounds_is_refused_by_name(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as refused:
        read_mapping(path)
    assert str(path) in str(refused.value)


def test_aliases_and_depth_within_bounds_are_read(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("a: &a {b: [1, 2]}\nc: {<<: *a}\n")
    assert read_mapping(path) == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}}
