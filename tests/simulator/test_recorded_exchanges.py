"""The simulator answers as the recorded vLLM 0.32 did: status, headers, structure, error bodies."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from vllm_rollout.simulator.running import RunningSimulator

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LONG_PROMPT = "Hello " * 800  # 4800 characters
# The recorded chat template added 21 characters to its prompt; the simulator's adds 19.
LONG_CONTENT = "x" * (4821 - 19)
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def completion(**fields: Any) -> tuple[str, str, Any]:
    return "POST", COMPLETIONS, {"model": "llama-2-7b", "prompt": "Hello", **fields}


def chat(**fields: Any) -> tuple[str, str, Any]:
    messages = [{"role": "user", "content": "Hello"}]
    return "POST", CHAT, {"model": "llama-2-7b", "messages": messages, **fields}


# Every exchange of one recorded session; test_recorded_metrics replays it as a whole.
EXCHANGES: dict[str, tuple[str, str, Any]] = {
    "health": ("GET", "/health", None),
    "ping": ("GET", "/ping", None),
    "version": ("GET", "/version", None),
    "load": ("GET", "/load", None),
    "models": ("GET", "/v1/models", None),
    "models_unknown": ("GET", "/v1/models/nope", None),
    "root": ("GET", "/", None),
    "err_404_path": ("GET", "/v1/nope", None),
    "err_get_completions": ("GET", COMPLETIONS, None),
    "completion": completion(max_tokens=8),
    "completion_default_max_tokens": completion(),
    "completion_ignore_eos": completion(max_tokens=16, ignore_eos=True),
    "completion_list_prompts": completion(prompt=["one", "two"], max_tokens=2),
    "completion_logprobs": completion(max_tokens=2, logprobs=1),
    "completion_stream": completion(max_tokens=8, stream=True),
    "completion_stream_usage": completion(max_tokens=4, **USAGE),
    "extra_field_ignored": completion(max_tokens=2, no_such_field=1),
    "err_missing_model": ("POST", COMPLETIONS, {"prompt": "Hello", "max_tokens": 4}),
    "chat": chat(max_tokens=8),
    "chat_stream": chat(max_tokens=4, stream=True),
    "chat_stream_usage": chat(max_tokens=4, **USAGE),
    "err_unknown_model": completion(model="nope"),
    "err_stream_unknown_model": completion(model="nope", stream=True),
    "err_chat_unknown_model": chat(model="nope"),
    "err_max_tokens_negative": completion(max_tokens=-1),
    "err_max_tokens_zero": completion(max_tokens=0),
    "err_max_tokens_string": completion(max_tokens="abc"),
    "err_max_tokens_over_context": completion(max_tokens=100_000),
    "err_temperature_negative": completion(temperature=-1),
    "err_top_p_bad": completion(top_p=2),
    "err_empty_prompt": completion(prompt=""),
    "err_missing_prompt": ("POST", COMPLETIONS, {"model": "llama-2-7b", "max_tokens": 4}),
    "err_prompt_too_long": completion(prompt=LONG_PROMPT, max_tokens=4),
    "err_chat_prompt_too_long": chat(messages=[{"role": "user", "content": LONG_CONTENT}]),
    "err_chat_empty_messages": chat(messages=[]),
    "err_malformed_json": ("POST", COMPLETIONS, '{"model":"llama-2-7b",'),
    "err_no_content_type": ("POST", COMPLETIONS, b'{"prompt":"Hello"}'),
}

APIKEY_EXCHANGES: dict[str, tuple[str, str, Any, str]] = {
    "nokey_health": ("GET", "/health", None, ""),
    "nokey_version": ("GET", "/version", None, ""),
    "nokey_404": ("GET", "/nope", None, ""),
    "nokey_models": ("GET", "/v1/models", None, ""),
    "nokey_completion": (*completion(max_tokens=2), ""),
    "badkey_completion": (*completion(max_tokens=2), "wrong"),
    "goodkey_models": ("GET", "/v1/models", None, "second"),
    "goodkey_completion": (*completion(max_tokens=2), "first"),
}


def send(client: httpx.Client, method: str, path: str, body: Any, key: str = "") -> httpx.Response:
    """Send a recorded request: text goes as broken JSON, bytes go without a JSON content type."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if isinstance(body, str):
        headers["Content-Type"] = "application/json"
    if isinstance(body, bytes):
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    if isinstance(body, str | bytes):
        return client.request(method, path, content=body, headers=headers)
    return client.request(method, path, json=body, headers=headers)


def recorded(folder: Path, name: str) -> tuple[int, set[str], str]:
    """Status, header names and body of a recorded exchange."""
    lines = (folder / f"{name}.headers").read_text().strip().splitlines()
    names = {line.partition(":")[0].lower() for line in lines[1:]}
    return int(lines[0].split()[1]), names, (folder / f"{name}.body").read_text()


def shape(value: Any) -> Any:
    """Keys and types. Tokens are keys in `top_logprobs`, so only its values' types are kept."""
    if isinstance(value, dict):
        return {
            key: (
                [sorted({type(one).__name__ for one in entry.values()}) for entry in inner]
                if key == "top_logprobs" and inner
                else shape(inner)
            )
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [shape(one) for one in value]
    return type(value).__name__


def events(body: str) -> list[Any]:
    """The events of a stream: decoded, or the text `[DONE]`."""
    blocks = body.removesuffix("\n\n").split("\n\n")
    assert all(block.startswith("data: ") for block in blocks)
    texts = [block.removeprefix("data: ") for block in blocks]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


def same_answer(response: httpx.Response, folder: Path, name: str) -> None:
    """Assert what the module says."""
    status, headers, body = recorded(folder, name)
    assert response.status_code == status
    assert {header.lower() for header in response.headers} == headers
    assert response.headers["server"] == "uvicorn"
    if "event-stream" in response.headers.get("content-type", ""):
        expected = [shape(event) for event in events(body)]
        assert [shape(event) for event in events(response.text)] == expected
        assert '": ' not in response.text
    elif status != 200 or not body:
        assert response.text == body
    else:
        assert shape(response.json()) == shape(json.loads(body))
        assert list(response.json()) == list(json.loads(body))
        assert '": ' not in response.text


@pytest.mark.parametrize("name", EXCHANGES)
def test_answers_as_recorded(name: str, client: httpx.Client, recordings: Path) -> None:
    same_answer(send(client, *EXCHANGES[name]), recordings / "noauth", name)


def test_every_recorded_exchange_is_replayed(recordings: Path) -> None:
    names = {path.stem for path in (recordings / "noauth").glob("*.headers")}
    assert {name for name in names if not name.startswith("metrics")} == set(EXCHANGES)


@pytest.mark.parametrize("name", ["completion", "completion_list_prompts", "chat"])
def test_counts_tokens_and_ends_as_recorded(
    name: str, client: httpx.Client, recordings: Path
) -> None:
    body = json.loads(recorded(recordings / "noauth", name)[2])
    answer = send(client, *EXCHANGES[name]).json()
    assert answer["usage"]["completion_tokens"] == body["usage"]["completion_tokens"]
    assert answer["object"] == body["object"]
    assert re.fullmatch(r"(cmpl|chatcmpl)-[0-9a-f]{16}", answer["id"])
    for mine, theirs in zip(answer["choices"], body["choices"], strict=True):
        assert mine["index"] == theirs["index"]
        assert mine["finish_reason"] == theirs["finish_reason"] == "length"


@pytest.mark.parametrize("name", ["completion_stream_usage", "chat_stream_usage"])
def test_a_streams_texts_add_up_to_the_whole_answer(name: str, client: httpx.Client) -> None:
    method, path, body = EXCHANGES[name]
    body = {**body, "temperature": 0}
    *chunks, usage, done = events(send(client, method, path, body).text)
    text = "".join(
        choice.get("text") or choice.get("delta", {}).get("content", "")
        for chunk in chunks
        for choice in chunk["choices"]
    )
    whole = send(client, method, path, {**body, "stream": False, "stream_options": None}).json()
    choice = whole["choices"][0]
    assert text == (choice["text"] if "text" in choice else choice["message"]["content"]) != ""
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 4
    assert done == "[DONE]"


@pytest.fixture(scope="module")
def guarded() -> Iterator[RunningSimulator]:
    """A simulator that asks for one of two keys."""
    with RunningSimulator(api_keys="first,second", ttft_seconds=0, max_model_len=256) as running:
        yield running


@pytest.mark.parametrize("name", APIKEY_EXCHANGES)
def test_asks_for_a_key_as_recorded(name: str, guarded: RunningSimulator, recordings: Path) -> None:
    with httpx.Client(base_url=guarded.url) as client:
        same_answer(send(client, *APIKEY_EXCHANGES[name]), recordings / "apikey", name)


@pytest.mark.parametrize("header", ["first", "Basic first", "Bearer", "Bearer ", "Bearer first x"])
def test_a_header_that_is_not_a_bearer_key_is_unauthorized(
    header: str, guarded: RunningSimulator
) -> None:
    response = httpx.get(f"{guarded.url}/v1/models", headers={"Authorization": header.strip()})
    assert (response.status_code, response.text) == (401, '{"error":"Unauthorized"}')


@pytest.mark.parametrize(
    ("name", "exchange"),
    {
        "completion_503": completion(),
        "chat_503": chat(),
        "completion_stream_overload_http200": completion(stream=True),
        "chat_stream_overload_http200": chat(stream=True),
    }.items(),
)
def test_turns_requests_away_as_recorded(
    name: str, exchange: tuple[str, str, Any], simulator: RunningSimulator, recordings: Path
) -> None:
    simulator.turn(hang=True, max_num_seqs=1, max_num_queued_reqs=1)
    with httpx.Client(base_url=simulator.url) as client, ExitStack() as held:
        for _ in range(2):  # one runs, one waits
            method, path, body = completion(stream=True)
            held.enter_context(client.stream(method, path, json=body))
        response = send(client, *exchange)
        status, headers, body = recorded(recordings / "overload503", name)
        assert response.status_code == status
        assert {header.lower() for header in response.headers} == headers
        assert response.text == body
        assert client.get("/health").status_code == 200


def test_a_dead_engine_answers_as_recorded(
    client: httpx.Client, simulator: RunningSimulator, recordings: Path
) -> None:
    simulator.turn(dead=True)
    same_answer(client.get("/health"), recordings / "engine-dead", "health_1")
    for exchange in (completion(), completion(stream=True), chat()):
        same_answer(send(client, *exchange), recordings / "engine-dead", "completion_1")
    assert client.get("/v1/models").status_code == 200
