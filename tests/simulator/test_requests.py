"""Request bodies beyond the recorded ones: read if vLLM would read them, refused otherwise."""

import json
from typing import Any

import pytest

from vllm_rollout.simulator.requests import Inference, Kind, Refusal, read


def parsed(kind: Kind, body: Any, content_type: str = "application/json") -> Inference:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read(kind, content_type, content, model="llama-2-7b", max_model_len=256)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"1e999",
        b"\xff\xfe{",
        b"[" * 100_000,
        b'{"prompt": "x", "max_tokens": 1e400}',
        {"prompt": 5},
        {"prompt": []},
        {"prompt": "x", "n": 0},
        {"prompt": "x", "n": 10**9},
        {"prompt": [1] * 300},
        {"prompt": "word " * 250, "max_tokens": 10},
        {"prompt": "x", "stream": "perhaps"},
        {"prompt": "x", "stream_options": 1},
    ],
)
def test_a_bad_completion_is_refused_as_a_bad_request(body: Any) -> None:
    with pytest.raises(Refusal) as refusal:
        parsed("completion", body)
    error = refusal.value.body["error"]
    assert refusal.value.status == error["code"] == 400
    assert error["message"]
    assert len(json.dumps(error)) < 2000


@pytest.mark.parametrize("body", [{}, {"messages": "x"}, {"messages": [1]}, {"messages": None}])
def test_a_bad_chat_is_refused_for_its_messages(body: Any) -> None:
    with pytest.raises(Refusal) as refusal:
        parsed("chat", body)
    assert str(refusal.value.body["error"]["param"]).startswith("body.messages")


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("Hello", [1]),
        ("Hello, world!", [4]),
        (["one", "two words"], [1, 2]),
        ([1, 2, 3], [3]),
        ([[1, 2], [3]], [2, 1]),
    ],
)
def test_a_prompt_may_be_text_texts_tokens_or_lists_of_tokens(
    prompt: Any, tokens: list[int]
) -> None:
    inference = parsed("completion", {"prompt": prompt})
    assert [one.tokens for one in inference.prompts] == tokens
    assert inference.max_tokens == 16


def test_a_chat_may_fill_the_context_and_has_text_parts() -> None:
    parts = [{"type": "text", "text": "Hello"}, {"type": "image_url", "image_url": {}}]
    inference = parsed(
        "chat",
        {"messages": [{"role": "user", "content": parts}]},
        "application/json; charset=utf-8",
    )
    (prompt,) = inference.prompts
    assert "Hello" in prompt.text
    assert inference.max_tokens == 256 - prompt.tokens
    limited = {"messages": [{"role": "user", "content": "Hello"}], "max_completion_tokens": 7}
    assert parsed("chat", {**limited, "max_tokens": 9}).max_tokens == 7


def test_usage_is_included_only_when_asked_for() -> None:
    assert not parsed("completion", {"prompt": "x", "stream": True}).include_usage
    options = {"include_usage": True}
    assert parsed("completion", {"prompt": "x", "stream_options": options}).include_usage
