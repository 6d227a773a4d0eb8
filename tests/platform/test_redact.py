"""Secrets taken out of text."""

import pytest

from vllm_rollout.platform.redact import HIDDEN, redact, secrets_in


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abc.DEF-123", "abc.DEF-123"),
        ("non-default args: {'api_key': ['sk-none'], 'port': 8000}", "sk-none"),
        ("vllm serve --api-key='s3cret' --port 8000", "s3cret"),
        ("HF_TOKEN=hf_abcdefghijklmnop", "hf_abcdefghijklmnop"),
        ("cloning with hf_abcdefghijklmnop", "hf_abcdefghijklmnop"),
        ('{"password": "hunter2"}', "hunter2"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert HIDDEN in redact(text)


def test_known_values_are_hidden_wherever_they_stand() -> None:
    assert redact("a longer-value b long c", ["long", "longer-value"]) == (
        f"a {HIDDEN} b {HIDDEN} c"
    )


@pytest.mark.parametrize(
    "text", ["max_tokens=64 tokenizer='llama' total_tokens: 12", "GET /health 200", ""]
)
def test_ordinary_log_lines_stay(text: str) -> None:
    assert redact(text) == text


def test_secrets_are_found_by_the_names_of_variables() -> None:
    environment = {"API_KEY": "0123456789", "DB_PASSWORD": "ab", "MONKEY_HOME": "/home/monkey"}
    assert secrets_in(environment) == ["0123456789"]
