"""A load is stopped by the very verdicts given of it, and by nothing that may be chance."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from msgspec import structs

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.alpha_spending import AlphaSpending
from vllm_rollout.judge.multiple_testing import judge_family
from vllm_rollout.judge.outage import OutageLimits, find_outage
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import LoadResult, RequestOutcome, RequestRecord
from vllm_rollout.policy import load_policy
from vllm_rollout.pytest_plugin.judged_load import JudgedLoad, LoadWatch, Watching, stop_reason
from vllm_rollout.pytest_plugin.load_questions import (
    CapacityQuestion,
    ErrorRateQuestion,
    LatencyQuestion,
    LoadQuestion,
    load_questions,
)

SLO = (
    load_policy(
        overrides={
            "environments.staging.gates.error_rate.limit": "1%",
            "environments.staging.gates.goodput.target": "90%",
            "environments.staging.gates.goodput.ttft": "1s",
        }
    )
    .environments["staging"]
    .gates
)
QUESTIONS = load_questions(SLO)
PLAN = LoadPlan(
    base_url="http://h",
    model="m",
    rate_per_second=10,
    duration_seconds=600,
    warmup_seconds=5,
    arrivals="constant",
)
FAILS = Watching(spending=AlphaSpending(confidence=0.95, early=0.2, gates=4), burst=10)
OUTAGE = OutageLimits(failing_seconds=10, refused_seconds=3, requests=20)
BOTH = replace(FAILS, spending=replace(FAILS.spending, passes=True))


def requests(count: int, *, latency: float = 0.2, bad: Iterable[int] = ()) -> list[RequestRecord]:
    """`count` requests, answered after `latency` seconds but for those numbered `bad`."""
    failing = set(bad)
    return [
        RequestRecord(
            number=50 + number,
            intended=(at := 5 + number / 10),
            sent=at,
            first_token=None if number in failing else at + latency / 2,
            end=at + latency,
            outcome=RequestOutcome.HTTP_ERROR if number in failing else RequestOutcome.OK,
            completion_tokens=8,
        )
        for number in range(count)
    ]


def loaded(records: Sequence[RequestRecord], *, stopped: str = "", **changes: object) -> JudgedLoad:
    after = len(records) / 10 if stopped else math.inf
    result = LoadResult(
        plan=PLAN, started_at=0.0, requests=tuple(records), stopped_after_seconds=after
    )
    watch = watched(records, FAILS)
    judged = JudgedLoad(result=result, confidence=0.95, watch=watch, stopped=stopped)
    return replace(judged, **changes)  # type: ignore[arg-type]


def watched(records: Sequence[RequestRecord], watching: Watching) -> LoadWatch:
    watch = LoadWatch(QUESTIONS, PLAN, watching)
    watch.end(records)
    return watch


def run(
    records: Sequence[RequestRecord],
    watching: Watching | None,
    *,
    batch: int = 10,
    outage: OutageLimits | None = None,
) -> tuple[LoadWatch, JudgedLoad]:
    """Watch the records come in batches; those after the batch that stops it never come."""
    watch = LoadWatch(QUESTIONS, PLAN, watching, outage)
    for begin in range(0, len(records), batch):
        if watch.enough(records[begin : begin + batch]):
            came = records[: begin + batch]
            found = find_outage(came, outage) if outage else None
            judged = loaded(came, stopped="it said so", watch=watch, outage=found)
            return watch, replace(judged, stopped=stop_reason(judged.result, watch))
    watch.end(records)
    return watch, loaded(records, watch=watch)


def outcomes(judged: JudgedLoad) -> dict[str, Outcome]:
    return {question.name: judged.verdict(question).outcome for question in QUESTIONS}


SLOW = requests(6000, latency=4.0)
GOOD = requests(6000)


def test_every_gate_on_the_load_is_asked() -> None:
    assert [question.name for question in QUESTIONS] == [
        "P95 latency",
        "error rate",
        "goodput",
        "load capacity",
    ]
    assert load_questions(load_policy().environments["development"].gates) == ()


@pytest.mark.parametrize("batch", [1, 7, 500])
def test_a_slow_build_is_stopped_and_said_to_be_what_stopped_it(batch: int) -> None:
    watch, judged = run(SLOW, FAILS, batch=batch)
    assert judged.result.total <= max(500, 60)
    assert "had failed, after" in judged.stopped
    assert "of about 6,000 requests" in judged.stopped
    found = outcomes(judged)
    assert found["P95 latency"] is Outcome.FAIL
    assert found["error rate"] is Outcome.INCONCLUSIVE
    assert found["load capacity"] is Outcome.INCONCLUSIVE
    verdict = judged.verdict(QUESTIONS[0])
    assert verdict.n <= 40
    assert verdict == loaded(SLOW).verdict(QUESTIONS[0]), "however much of the load came after"
    assert bool(watch.why)


def test_a_fail_that_stops_the_load_stands_in_the_report() -> None:
    _, judged = run(SLOW, FAILS)
    verdicts = [judged.verdict(question) for question in QUESTIONS]
    assert judge_family(verdicts, confidence=0.95)[0].outcome is Outcome.FAIL


def test_a_good_build_runs_to_its_end_and_is_judged_by_the_fixed_sample() -> None:
    watch, judged = run(GOOD, FAILS)
    assert (watch.why, judged.stopped) == ("", "")
    assert set(outcomes(judged).values()) == {Outcome.PASS}
    for question in QUESTIONS:
        watched, plain = judged.verdict(question), question.whole(judged.result, confidence=0.95)
        assert watched.outcome is plain.outcome
        assert (watched.lower, watched.upper, watched.n) == (plain.lower, plain.upper, 6000)


def test_a_load_that_is_not_watched_is_judged_as_ever() -> None:
    judged = loaded(SLOW, watch=None)
    for question in QUESTIONS:
        assert judged.verdict(question) == question.whole(judged.result, confidence=0.95)


def killed(after: int) -> list[RequestRecord]:
    """A load of whose deployment nothing is left after so many requests."""
    return [
        structs.replace(
            r, outcome=RequestOutcome.CONNECTION, error="Connection refused", end=r.sent
        )
        if number >= after
        else r
        for number, r in enumerate(GOOD)
    ]


@pytest.mark.parametrize("watching", [FAILS, BOTH, None], ids=["fails", "all", "off"])
@pytest.mark.parametrize("after", [0, 57, 900])
def test_a_deployment_that_dies_fails_every_gate_and_ends_the_load(
    watching: Watching | None, after: int
) -> None:
    _, judged = run(killed(after), watching, outage=OUTAGE)
    assert after + 31 <= judged.result.total <= after + 40
    assert judged.stopped.startswith("there was an outage, after ")
    verdicts = [judged.verdict(question) for question in QUESTIONS]
    assert {v.outcome for v in judge_family(verdicts, confidence=0.95)} == {Outcome.FAIL}
    assert all(f"{5 + after / 10:g} s into the load" in v.reason for v in verdicts)
    assert all("31 requests in a row failed within 3 s" in v.reason for v in verdicts)
    assert all(v.reason.endswith("the last with: Connection refused") for v in verdicts)


def test_a_fail_stops_no_load_while_there_may_be_an_outage() -> None:
    """30 failures decide the error rate; for all gates it waits, until there is an answer."""
    watch, judged = run(requests(6000, bad=range(50)), FAILS, outage=OUTAGE)
    assert "error rate" in watch.why
    assert watch.why.endswith("had failed")
    assert judged.result.total == 60
    assert judged.outage is None


def test_one_stall_does_not_stop_a_load() -> None:
    """A second in which nothing is answered, at the very beginning: ten requests in a row."""
    watch, judged = run(requests(6000, bad=range(10)), FAILS)
    assert watch.why == ""
    assert Outcome.FAIL not in outcomes(judged).values()


def test_a_part_of_a_load_never_passes_unless_passes_were_watched_for() -> None:
    """3,000 requests would show all of it at the end; a load stopped there shows none of it."""
    part = loaded(GOOD[:3000], stopped="something had failed, after 3,000 of 6,000 requests")
    assert set(outcomes(part).values()) == {Outcome.INCONCLUSIVE}
    assert "not decided when the load was stopped" in part.verdict(QUESTIONS[0]).reason


def test_a_load_may_be_stopped_when_everything_is_decided() -> None:
    watch, judged = run(GOOD, BOTH)
    assert watch.why == "every gate on it had passed"
    assert judged.result.total < 2000
    assert set(outcomes(judged).values()) == {Outcome.PASS}
    for question in QUESTIONS:
        assert judged.verdict(question).confidence == BOTH.spending.early_pass_confidence


def test_with_all_to_be_decided_a_fail_alone_does_not_stop_it() -> None:
    watch, judged = run(SLOW, BOTH)
    assert watch.why.startswith("all was decided, and P95 latency")
    assert judged.result.total > 100
    assert outcomes(judged)["error rate"] is Outcome.PASS


def test_passes_alone_stop_no_load_that_other_gates_judge_as_a_whole() -> None:
    assert run(GOOD, replace(BOTH, wholes=True))[0].why == ""
    assert run(SLOW, replace(BOTH, wholes=True))[0].why != ""


def test_nothing_is_decided_on_nothing() -> None:
    watch = LoadWatch(QUESTIONS, PLAN, BOTH)
    assert not watch.enough([])
    assert not LoadWatch((), PLAN, BOTH).enough(GOOD)
    for judged in (
        loaded([]),
        loaded([], stopped="for no reason"),
        loaded([], watch=watched([], BOTH)),
    ):
        assert set(outcomes(judged).values()) == {Outcome.INCONCLUSIVE}


@pytest.mark.parametrize("broken", [math.nan, -1.0])
def test_a_time_that_is_none_decides_nothing_about_latency(broken: float) -> None:
    spoilt = [structs.replace(GOOD[0], end=GOOD[0].intended + broken), *GOOD[1:]]
    watch, judged = run(spoilt, BOTH)
    assert watch.why == ""
    assert outcomes(judged)["P95 latency"] is Outcome.INCONCLUSIVE
    late = loaded([structs.replace(r, end=r.intended + broken) for r in GOOD])
    assert outcomes(late)["P95 latency"] is Outcome.INCONCLUSIVE


def test_requests_that_were_not_sent_count_as_failed() -> None:
    unsent = [
        RequestRecord(number=r.number, intended=r.intended, outcome=RequestOutcome.UNSENT)
        for r in GOOD
    ]
    _, judged = run(unsent, FAILS)
    found = outcomes(judged)
    assert found["error rate"] is Outcome.FAIL
    assert found["load capacity"] is Outcome.INCONCLUSIVE, "nothing was offered"


@pytest.mark.parametrize("rate", [2, 10])
def test_capacity_is_decided_only_while_the_expected_rate_is_offered(rate: int) -> None:
    question: LoadQuestion = CapacityQuestion(SLO.load_capacity)  # type: ignore[arg-type]
    records = [
        structs.replace(r, intended=(at := 5 + number / rate), sent=at, end=at + 0.1)
        for number, r in enumerate(requests(400, bad=range(400)))
    ]
    watch = LoadWatch([question], PLAN, FAILS)
    assert watch.enough(records) is (rate == 10)


def test_a_question_of_a_teams_own_is_judged_by_the_same_rules() -> None:
    stricter = LatencyQuestion(SLO.latency.model_copy(update={"percentile": 99}))  # type: ignore[union-attr]
    _, judged = run(SLOW, FAILS)
    assert judged.verdict(stricter).outcome is Outcome.FAIL
    looser = ErrorRateQuestion(SLO.error_rate.model_copy(update={"limit": 0.9}))  # type: ignore[union-attr]
    assert judged.verdict(looser).outcome is Outcome.INCONCLUSIVE


def stalled(records: Sequence[RequestRecord], *, every: int) -> list[RequestRecord]:
    """The same, the generator having stalled for 80 ms before it read each n-th answer."""
    return [
        structs.replace(r, first_token=None, stalled_seconds=0.08) if r.number % every == 0 else r
        for r in records
    ]


@pytest.mark.parametrize("watching", [None, FAILS, BOTH], ids=["whole", "fails", "decided"])
def test_times_that_stalls_hide_decide_nothing(watching: Watching | None) -> None:
    """A third of the first tokens is not known: 90% may be in time, and may not be."""
    records = stalled(requests(600, latency=1.2), every=3)
    watch = watched(records, watching) if watching else None
    assert watch is None or not LoadWatch(QUESTIONS[2:3], PLAN, FAILS).enough(records)
    judged = loaded(records, watch=watch)
    goodput = judged.verdict(QUESTIONS[2])
    assert goodput.outcome is Outcome.INCONCLUSIVE
    assert "200 of 600 requests have times that are not known" in goodput.reason
    assert "generator itself stalled" in goodput.reason
    assert goodput.remedy.startswith("Give the load generator a machine of its own")
    assert judged.verdict(QUESTIONS[0]).passed, "a latency is at most 80 ms less"


def test_few_stalls_or_answers_bad_without_them_change_no_verdict() -> None:
    assert loaded(stalled(requests(600, latency=1.2), every=50)).verdict(QUESTIONS[2]).passed
    assert loaded(stalled(GOOD[:600], every=1)).verdict(QUESTIONS[2]).passed, "all ended in time"
    slow = loaded(stalled(SLOW[:600], every=3))
    assert [slow.verdict(question).outcome for question in (QUESTIONS[0], QUESTIONS[2])] == [
        Outcome.FAIL,
        Outcome.FAIL,
    ]
    near = requests(600, latency=3.05)
    assert loaded(near).verdict(QUESTIONS[0]).outcome is Outcome.FAIL
    assert loaded(stalled(near, every=1)).verdict(QUESTIONS[0]).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("failure", "words", "remedy"),
    [
        (
            {
                "outcome": RequestOutcome.HTTP_ERROR,
                "status": 400,
                "error": "400 max_tokens=512 cannot be greater than max_model_len=256.",
            },
            "http_error 400, “400 max_tokens=512 cannot be greater than max_model_len=256.”",
            "Ask for less, or serve a longer context",
        ),
        (
            {"outcome": RequestOutcome.HTTP_ERROR, "status": 429, "error": "429 600 rpm"},
            "http_error 429, “429 600 rpm”",
            "Raise the rate limit",
        ),
        (
            {"outcome": RequestOutcome.HTTP_ERROR, "status": 502, "error": "502 <html>\n<h1>Bad"},
            "http_error 502, “502 <html> <h1>Bad”",
            "See why the gateway found no server",
        ),
        (
            {"outcome": RequestOutcome.CONNECTION, "error": "ConnectionRefusedError: 111"},
            "connection, “ConnectionRefusedError: 111”",
            "See whether replicas restarted",
        ),
    ],
)
def test_a_fail_names_what_failed_most_in_the_servers_words(
    failure: dict[str, object], words: str, remedy: str
) -> None:
    broken = structs.replace(GOOD[0], first_token=None, **failure)
    records = [
        structs.replace(broken, number=r.number, intended=r.intended, end=r.intended + 0.02)
        if r.number % 4
        else r
        for r in GOOD[:1000]
    ]
    records[1] = structs.replace(records[1], outcome=RequestOutcome.TIMEOUT, error="slow")
    for judged in (loaded(records), loaded(records, watch=None)):
        for question in QUESTIONS[:3]:
            verdict = judged.verdict(question)
            assert verdict.outcome is Outcome.FAIL
            assert verdict.reason.endswith(f"; failures: 749 {words}; 1 timeout, “slow”")
            assert verdict.remedy.startswith(remedy), question.name
            assert "no answer" not in verdict.reason
            assert "replicas or faster ones" not in verdict.remedy
    slow = [r if not r.ok else structs.replace(r, end=r.intended + 4) for r in records]
    both = loaded(slow, watch=None).verdict(QUESTIONS[0]).remedy
    assert both.startswith(remedy)
    assert "replicas or faster ones" in both
