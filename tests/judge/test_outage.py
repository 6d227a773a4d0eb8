"""An outage is a fact: failures in a row, for a stated time; nothing that answers has one."""

import math
from dataclasses import replace

import pytest
from msgspec import structs

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.outage import (
    Outage,
    OutageLimits,
    OutageWatch,
    find_outage,
    outage_verdict,
)
from vllm_rollout.model.load_result import RequestOutcome, RequestRecord

LIMITS = OutageLimits(failing_seconds=10, refused_seconds=3, requests=20)
REFUSED = "ConnectionRefusedError: [Errno 111] Connection refused"


def request(number: int, outcome: str = "ok", **changes: object) -> RequestRecord:
    """Request `number` of ten a second."""
    due = number / 10
    record = RequestRecord(
        number=number, intended=due, end=due + 0.1, outcome=RequestOutcome(outcome)
    )
    return structs.replace(record, **changes)  # type: ignore[arg-type]


def outage_in(*runs: tuple[int, dict[str, object]], limits: OutageLimits = LIMITS) -> Outage | None:
    """What is found in so many requests of one kind, then so many of the next."""
    kinds = [changes for count, changes in runs for _ in range(count)]
    records = [request(number, **changes) for number, changes in enumerate(kinds)]  # type: ignore[arg-type]
    return find_outage(records, limits)


OK: dict[str, object] = {}
DOWN: dict[str, object] = {"outcome": "connection", "error": REFUSED}
LIMITED: dict[str, object] = {"outcome": "http_error", "status": 429, "error": "429 no deployments"}
NO_KEY: dict[str, object] = {"outcome": "http_error", "status": 401, "error": "401 who are you"}
BROKEN: dict[str, object] = {"outcome": "http_error", "status": 503, "error": "HTTP 503: no engine"}


def test_nothing_that_listens_any_more_is_an_outage_in_seconds():
    found = outage_in((50, OK), (200, DOWN))
    assert found is not None
    assert (found.began, found.seconds, found.requests) == (5.0, 3.0, 31)
    verdict = outage_verdict(found, started_at=1_800_000_000, n=81)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason == (
        "an outage: nothing listened from 08:00:05 UTC, 5 s into the load. 31 requests in a row "
        f"failed within 3 s, the last with: {REFUSED}"
    )
    assert verdict.remedy


def test_errors_alone_for_longer_are_an_outage_too():
    assert outage_in((50, OK), (100, BROKEN), (50, OK)) is None
    found = outage_in((50, OK), (100, BROKEN), (1, DOWN))
    assert found is not None
    assert "every request failed from 5 s into the load" in found.reason()


def test_requests_cut_off_by_the_kill_belong_to_the_outage():
    found = outage_in((50, OK), (4, {"outcome": "truncated"}), (40, DOWN))
    assert found is not None
    assert (found.began, found.requests) == (5.0, 35)


@pytest.mark.parametrize(
    "runs",
    [
        [(100, OK)],
        [(50, OK), (29, DOWN), (50, OK)],
        [(9, DOWN), (1, OK)] * 50,
        [(19, {**DOWN, "outcome": "timeout"}), (1, OK)] * 50,
        [(95, LIMITED), (1, OK)] * 5,
        [(50, OK), (99, LIMITED), (50, OK)],
        [(500, NO_KEY)],
        [(500, {"outcome": "timeout", "first_token": 1.0})],
        [(500, {"outcome": "unsent", "error": "Too many open files"})],
        [],
    ],
    ids=[
        "healthy",
        "a restart of three seconds",
        "one of several replicas",
        "short stalls",
        "a limit that lets some pass",
        "a burst of refusals",
        "a key that is refused from the start",
        "slow streams",
        "the generator's own failure",
        "nothing",
    ],
)
def test_what_is_no_outage(runs):
    assert outage_in(*runs) is None


@pytest.mark.parametrize("refusal", [LIMITED, {**LIMITED, "status": 400}, NO_KEY])
def test_nothing_but_refusals_for_as_long_is_an_outage_named_so(refusal) -> None:
    found = outage_in((50, OK), (200, refusal))
    assert found is not None
    assert (found.began, found.seconds, found.requests) == (5.0, 10.0, 101)
    assert "every request was refused from 5 s into the load. 101 requests" in found.reason()
    assert found.reason().endswith(f"the last with: {refusal['error']}")
    assert "gateway" in outage_verdict(found, started_at=None, n=250).remedy


def test_refusals_between_failures_end_no_outage() -> None:
    gateway = [(14, BROKEN), (1, LIMITED)] * 20
    found = outage_in((50, OK), *gateway)
    assert found is not None
    assert (found.began, found.requests) == (5.0, 101)
    assert "every request failed" in found.reason()
    assert outage_in(*gateway[:12], (1, OK), *gateway[:12]) is None


def test_few_requests_in_a_long_time_are_no_outage_yet():
    assert outage_in((30, DOWN), limits=replace(LIMITS, requests=32)) is None
    assert outage_in((40, DOWN), limits=replace(LIMITS, requests=32)) is not None


def test_unsent_requests_neither_make_nor_end_an_outage():
    found = outage_in((25, DOWN), (5, {"outcome": "unsent"}), (1, DOWN))
    assert found is not None
    assert found.requests == 26


def test_an_outage_is_suspected_until_it_is_one_or_an_answer_comes():
    watch = OutageWatch(LIMITS)
    watch.take(request(0))
    assert not watch.suspected
    watch.take(request(1, "connection"))
    assert watch.suspected
    watch.take(request(2))
    assert not watch.suspected
    for number in range(3, 60):
        watch.take(request(number, "connection"))
    assert watch.found is not None
    assert not watch.suspected
    assert math.isclose(watch.found.began, 0.3)
