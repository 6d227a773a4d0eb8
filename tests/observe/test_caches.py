"""Answers of caches are recognised by the headers that real gateways write."""

from pathlib import Path

import pytest

from vllm_rollout.observe.answers import Answer
from vllm_rollout.observe.caches import KnownAnswers, cached_by

RECORDED = Path(__file__).parents[1] / "data" / "vllm-0.32.0"


@pytest.mark.parametrize(
    "header",
    [
        "Age: 12",
        "X-Cache: HIT",  # nginx and Varnish by habit, Fastly
        "X-Cache: MISS, HIT",
        "X-Cache: Hit from cloudfront",
        "X-Cache: TCP_MEM_HIT from a1.akamai.net",
        "X-Cache-Status: Hit",  # Kong
        "X-Cache-Status: STALE",
        "X-Proxy-Cache: HIT",
        "CF-Cache-Status: HIT",
        "cf-aig-cache-status: HIT",
        "Cache-Status: ExampleCache; hit; ttl=376",  # RFC 9211
        "X-Cache-Hits: 0, 3",
        "X-Varnish: 32770 3",
        "x-litellm-cache-key: 1f6a9",
        "x-portkey-cache-status: SEMANTIC HIT",
        "Helicone-Cache: HIT",
        "X-OpenRouter-Cache-Status: HIT",
        "x-vsr-cache-hit: true",
        "llm_provider-x-vsr-cache-hit: true",
    ],
)
def test_a_hit_is_recognised(header: str) -> None:
    name, _, value = header.partition(": ")
    assert cached_by([("Content-Type", "application/json"), (name, value)]) == (
        f"{name.lower()}: {value}"
    )


@pytest.mark.parametrize(
    "header",
    [
        "Age: 0",  # Varnish, of what it has just fetched
        "Cache-Control: no-cache",
        "X-Cache: MISS",
        "X-Cache: RefreshMiss from cloudfront",
        "X-Cache-Status: Bypass",
        "X-Cache-Status: EXPIRED",
        "X-Cache-Key: 6fb1b6a4",  # Kong writes it on a miss too
        "X-Cache-Lookup: HIT from squid:3128",
        "Cache-Status: ExampleCache; fwd=stale; fwd-status=200",
        "CF-Cache-Status: DYNAMIC",
        "X-Cache-Hits: 0",
        "X-Varnish: 32770",
        "x-litellm-semantic-similarity: 0.42",
        "x-portkey-cache-status: SEMANTIC MISS",
        "x-vsr-cache-hit: false",
        "x-vsr-cache-similarity: 0.91",
        "x-white-space: hit",
    ],
)
def test_what_is_no_hit_is_not(header: str) -> None:
    name, _, value = header.partition(": ")
    assert cached_by([(name, value)]) == ""


def test_no_recorded_answer_of_vllm_is_called_cached() -> None:
    recordings = list(RECORDED.rglob("*.headers"))
    assert len(recordings) > 20
    for file in recordings:
        lines = [line.partition(": ") for line in file.read_text().splitlines()[1:] if line]
        assert cached_by([(name, value) for name, _, value in lines]) == "", file


def test_memory_of_answers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_rollout.observe.caches._MOST_KNOWN", 3)
    known = KnownAnswers()

    def again(number: int) -> bool:
        answer = Answer(
            text="", finish_reason="stop", prompt_tokens=1, completion_tokens=1, id=f"cmpl-{number}"
        )
        return known.came_before(answer)

    assert [again(n) for n in (1, 2, 2, 3, 4, 1)] == [False, False, True, False, False, False]
