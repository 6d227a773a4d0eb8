"""The inference client against a server that misbehaves in every way it can."""

import pytest

from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.load_result import RequestOutcome
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.observe.probe import probe
from vllm_rollout.simulator.running import RunningSimulator

MODEL = "llama-2-7b"
FAST = {"ttft_seconds": "0.005", "inter_token_seconds": "0.001"}


def client(url: str, key: str | None = None) -> InferenceClient:
    return InferenceClient(url, model=MODEL, api_key=key)


def test_good_answers_whole_and_streamed_completion_and_chat() -> None:
    with RunningSimulator(model=MODEL, **FAST) as server, client(server.url) as asking:
        assert asking.health(timeout_seconds=5).status == 200
        assert asking.models(timeout_seconds=5) == [MODEL]
        for stream in (False, True):
            for ask in (asking.complete, asking.chat):
                result = ask("Hello", max_tokens=4, timeout_seconds=10, stream=stream)
                assert result.ok, result
                assert result.answer is not None
                assert result.answer.completion_tokens == 4
                assert (result.ttft_seconds is None) is not stream


@pytest.mark.parametrize("stream", [False, True])
def test_each_fault_has_its_own_name_and_none_is_a_success(stream: bool) -> None:
    faults = {
        "error_rate": (1.0, RequestOutcome.HTTP_ERROR),
        "malformed_rate": (1.0, RequestOutcome.MALFORMED),
        "dead": (True, RequestOutcome.HTTP_ERROR),
        "hang": (True, RequestOutcome.TIMEOUT),
    }
    if stream:
        faults["truncated_rate"] = (1.0, RequestOutcome.TRUNCATED)
    with RunningSimulator(model=MODEL, **FAST) as server, client(server.url) as asking:
        for dial, (value, outcome) in faults.items():
            server.turn(**{dial: value})
            result = asking.complete("Hello", max_tokens=4, timeout_seconds=1, stream=stream)
            server.turn(**{dial: type(value)()})
            assert (dial, result.outcome) == (dial, outcome)
            assert result.answer is None
            assert result.error


def test_a_bearer_key_opens_and_never_shows() -> None:
    with RunningSimulator(model=MODEL, api_keys="right-key", **FAST) as server:
        with client(server.url, "right-key") as asking:
            assert asking.complete("Hello", max_tokens=1, timeout_seconds=5).ok
        with client(server.url, "wrong-key") as asking:
            refused = asking.complete("Hello", max_tokens=1, timeout_seconds=5)
    assert refused.status == 401
    assert "wrong-key" not in repr(refused)


def test_nothing_listening_is_unreachable_and_named() -> None:
    with client("http://127.0.0.1:9") as asking:
        for ask in (
            lambda: asking.health(timeout_seconds=2),
            lambda: asking.models(timeout_seconds=2),
            lambda: asking.complete("Hello", max_tokens=1, timeout_seconds=2),
        ):
            with pytest.raises(UnreachableError) as caught:
                ask()
            assert caught.value.address == "http://127.0.0.1:9"
        sample = probe(asking, count=3, timeout_seconds=2)

    assert (sample.total, sample.failures, sample.healthy) == (3, 3, False)
    assert "127.0.0.1:9" in sample.error


def test_probes_count_what_fails() -> None:
    with RunningSimulator(model=MODEL, **FAST) as server, client(server.url) as asking:
        good = probe(asking, count=4, timeout_seconds=5)
        server.turn(error_rate=1.0)
        bad = probe(asking, count=4, timeout_seconds=5)

    assert (good.failures, len(good.latencies_seconds), good.healthy) == (0, 4, True)
    assert (bad.failures, len(bad.latencies_seconds), bad.healthy) == (4, 0, True)
    assert "HTTP 500" in bad.error


def test_what_failed_by_the_ways_doing_counts_for_nothing() -> None:
    trouble = UnreachableError("the tunnel was cut", address="https://cluster")
    bad = ProbeSample(total=3, failures=1, latencies_seconds=(0.1, 0.1), healthy=True)
    good = ProbeSample(total=3, failures=0, latencies_seconds=(0.1,) * 3, healthy=True)

    assert bad.unless(None) == bad
    assert good.unless(trouble) == good
    nothing = bad.unless(trouble)
    assert (nothing.total, nothing.failures, nothing.latencies_seconds) == (0, 0, ())
    assert nothing.path_errors == "the tunnel was cut"
