"""`/metrics` has the recorded vLLM's families, types, labels and buckets, and moves as it moved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from vllm_rollout.simulator.running import RunningSimulator

Samples = Callable[[str], dict[str, float]]
HELLO = {"prompt": "Hello", "max_tokens": 2}


def described(text: str) -> dict[str, tuple[str, set[tuple[tuple[str, str], ...]]]]:
    """Type and label sets, bucket bounds among them, of all but the process's own families."""
    return {
        family.name: (
            family.type,
            {
                (("", sample.name.removeprefix(family.name)), *sorted(sample.labels.items()))
                for sample in family.samples
            },
        )
        for family in text_string_to_metric_families(text)
        if not family.name.startswith(("python_", "process_"))
    }


# The requests of the session between the recorded pages `metrics_0_fresh` and `metrics_1_after`,
# as counts: (method, path, body, times).
PROMPT = {"model": "llama-2-7b", "prompt": "Hello"}
MESSAGES = {"model": "llama-2-7b", "messages": [{"role": "user", "content": "Hello"}]}
SESSION: list[tuple[str, str, Any, int]] = [
    ("GET", "/health", None, 2),
    ("GET", "/v1/models", None, 1),
    ("GET", "/v1/nope", None, 3),
    ("GET", "/v1/completions", None, 1),
    ("POST", "/v1/completions", {**PROMPT, "max_tokens": 8}, 1),
    ("POST", "/v1/completions", {**PROMPT, "max_tokens": 16}, 2),
    ("POST", "/v1/completions", {**PROMPT, "prompt": ["one", "two"], "max_tokens": 2}, 1),
    ("POST", "/v1/completions", {**PROMPT, "max_tokens": 2}, 2),
    ("POST", "/v1/completions", {**PROMPT, "max_tokens": 8, "stream": True}, 1),
    ("POST", "/v1/completions", {**PROMPT, "max_tokens": 4, "stream": True}, 1),
    ("POST", "/v1/completions", {"prompt": "Hello", "max_tokens": 4}, 1),
    ("POST", "/v1/completions", {**PROMPT, "max_tokens": 0}, 13),
    ("POST", "/v1/chat/completions", {**MESSAGES, "max_tokens": 8}, 1),
    ("POST", "/v1/chat/completions", {**MESSAGES, "max_tokens": 4, "stream": True}, 2),
    ("POST", "/v1/chat/completions", {**MESSAGES, "max_tokens": 0}, 3),
]
MOVED = (
    "http_requests_total",
    "http_request_size_bytes_count",
    "http_response_size_bytes_count",
    "http_request_duration_seconds_count",
    "http_request_duration_highr_seconds_count",
    "vllm:request_success_total",
    "vllm:generation_tokens_total",
    "vllm:request_generation_tokens",
    "vllm:request_max_num_generation_tokens",
    "vllm:request_params_",
    "vllm:request_num_preemptions",
    "vllm:time_to_first_token_seconds_count",
    "vllm:inter_token_latency_seconds_count",
    "vllm:request_time_per_output_token_seconds_count",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:request_queue_time_seconds_count",
    "vllm:request_inference_time_seconds_count",
    "vllm:request_prefill_time_seconds_count",
    "vllm:request_decode_time_seconds_count",
    "vllm:admission_rejections_total",
    "vllm:num_requests_",
    "vllm:engine_sleep_state",
)


def test_a_fresh_and_a_used_page_are_as_recorded(recordings: Path, read_samples: Samples) -> None:
    with (
        RunningSimulator(ttft_seconds=0, inter_token_seconds=0, max_model_len=256) as fresh,
        httpx.Client(base_url=fresh.url, timeout=20) as client,
    ):
        page = client.get("/metrics")
        before = (recordings / "noauth" / "metrics_0_fresh.body").read_text()
        assert page.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
        assert described(page.text) == described(before)

        for method, path, body, times in SESSION:
            for _ in range(times):
                client.request(method, path, json=body)
        mine = client.get("/metrics").text
        after = (recordings / "noauth" / "metrics_1_after.body").read_text()
        assert described(mine) == described(after)

        def moved(text: str) -> dict[str, float]:
            return {
                name: value
                for name, value in read_samples(text).items()
                if name.startswith(MOVED) and "_created" not in name
            }

        assert moved(mine) == moved(after)


def test_refused_keys_are_counted_nowhere(recordings: Path, read_samples: Samples) -> None:
    with (
        RunningSimulator(api_keys="secret", ttft_seconds=0) as guarded,
        httpx.Client(base_url=guarded.url) as client,
    ):
        before = client.get("/metrics").text
        assert client.post("/v1/completions", json=HELLO).status_code == 401
        after = client.get("/metrics").text
    assert described(before) == described(after)
    assert not any(name.startswith("http_requests") for name in read_samples(after))


@pytest.fixture
def metrics(client: httpx.Client, read_samples: Samples) -> Callable[[], dict[str, float]]:
    """Reads the page now."""
    return lambda: read_samples(client.get("/metrics").text)


def difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What moved, `_created` gauges and the process's own left out."""
    return {
        name: value - before.get(name, 0)
        for name, value in after.items()
        if value != before.get(name, 0)
        and "_created" not in name
        and not name.startswith(("python_", "process_"))
    }


ENGINE = '{engine="0",model_name="llama-2-7b"'


def test_a_client_that_goes_away_counts_2xx_and_is_no_success(
    client: httpx.Client, simulator: RunningSimulator, metrics: Callable[[], dict[str, float]]
) -> None:
    simulator.turn(inter_token_seconds=3600)
    before = metrics()
    with client.stream("POST", "/v1/completions", json={**HELLO, "stream": True}) as answer:
        parts = answer.iter_raw()
        next(parts)
        assert metrics()[f"vllm:num_requests_running{ENGINE}}}"] == 1
    while metrics()[f"vllm:num_requests_running{ENGINE}}}"]:  # until the closing is noticed
        pass
    moved = difference(before, metrics())
    ok = 'http_requests_total{handler="/v1/completions",method="POST",status="2xx"}'
    assert moved[ok] == 1
    assert moved[f"vllm:time_to_first_token_seconds_count{ENGINE}}}"] == 1
    assert not any("request_success" in name or "e2e" in name for name in moved)
    assert simulator.truth()["requests"][-1]["outcome"] == "aborted"


def test_a_streamed_rejection_shows_only_in_admission_rejections(
    client: httpx.Client, simulator: RunningSimulator, metrics: Callable[[], dict[str, float]]
) -> None:
    simulator.turn(hang=True, max_num_seqs=1, max_num_queued_reqs=1)
    waiting = {**HELLO, "prompt": ["one", "two"], "stream": True}
    with client.stream("POST", "/v1/completions", json=waiting):
        before = metrics()
        assert before[f"vllm:num_requests_waiting{ENGINE}}}"] == 1
        client.post("/v1/completions", json={**HELLO, "stream": True})
        moved = difference(before, metrics())
    rejected = 'vllm:admission_rejections_total{model_name="llama-2-7b",reason='
    assert moved.pop(f'{rejected}"max_num_queued_reqs"}}') == 1
    assert moved.pop('http_requests_total{handler="/v1/completions",method="POST",status="2xx"}')
    assert all(name.startswith("http_") for name in moved)


def test_injected_errors_count_5xx_and_leave_the_engine_still(
    client: httpx.Client, simulator: RunningSimulator, metrics: Callable[[], dict[str, float]]
) -> None:
    simulator.turn(error_rate=1)
    before = metrics()
    assert client.post("/v1/completions", json=HELLO).status_code == 500
    moved = difference(before, metrics())
    assert moved['http_requests_total{handler="/v1/completions",method="POST",status="5xx"}'] == 1
    assert all(name.startswith("http_") for name in moved)
