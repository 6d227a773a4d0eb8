"""Rows of a report: nothing that kept a gate from knowing is lost, and none is a clean row."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from vllm_rollout.model.evidence import Evidence, GateResult, Step
from vllm_rollout.model.verdict import Outcome, Verdict, worst
from vllm_rollout.report.formatting import cut, headline
from vllm_rollout.report.rows import findings, report_items

Make = Callable[..., GateResult]
MakeEvidence = Callable[..., Evidence]


@pytest.mark.parametrize(
    "problem",
    [
        {"error": "Traceback (most recent call last):\n  File\nValueError: no such model"},
        {"unreachable": "http://127.0.0.1:1"},
        {"skipped": "no cluster"},
        {"error": "Failed: Timeout (>3.0s) from pytest-timeout."},
        {},
    ],
)
def test_a_gate_that_could_not_know_has_an_inconclusive_finding(
    problem: dict[str, str], make_gate: Make, passing: Verdict
) -> None:
    """An exception, no answer, a skip or no verdict at all: each is said, beside any verdict."""
    bare = findings(make_gate("latency", **problem))
    assert [v.outcome for v in bare] == [Outcome.INCONCLUSIVE]
    assert bare[0].remedy
    assert ("pytest-timeout" in bare[0].remedy) is ("pytest-timeout" in str(problem))
    judged = make_gate("latency", passing, **problem)
    assert worst([v.outcome for v in findings(judged)]) is judged.outcome
    if problem:
        said = next(iter(problem.values())).rpartition("\n")[2]
        assert any(said in v.reason for v in findings(judged))


def test_what_a_gate_says_is_as_long_as_can_be_read(make_gate: Make, failing: Verdict) -> None:
    """The page, the terminal and the CI have its beginning; the evidence has all of it."""
    long = "x" * 20_000
    (found,) = findings(make_gate("own", replace(failing, reason=long)))
    assert found == replace(failing, reason=cut(long, 2_000))
    (found,) = findings(make_gate("own", error=f"Traceback:\n{long}"))
    assert found.reason == cut(long, 2_000)


def test_a_silent_address_is_named_once(make_gate: Make) -> None:
    silent = "nothing answers at http://h:1: ConnectError"
    for error in (silent, "ConnectError"):
        (found,) = findings(make_gate("latency", unreachable="http://h:1", error=error))
        assert found.reason.count("http://h:1") == 1
    (refused,) = findings(make_gate("pods", unreachable="https://c", error="403: cannot list pods"))
    assert refused.reason == "403: cannot list pods (https://c)"


@pytest.mark.parametrize("exit_code", [None, 0, 1, 2, 3, 4, 5, 6, 130, 77])
@pytest.mark.parametrize("changed", ["", "revision 3 became 4"])
@pytest.mark.parametrize("expected", [(), ("latency",), ("latency", "soak")])
@pytest.mark.parametrize("ran", [True, False])
def test_the_rows_pass_only_if_the_banner_does(
    ran: bool,
    expected: tuple[str, ...],
    changed: str,
    exit_code: int | None,
    make_gate: Make,
    make_evidence: MakeEvidence,
    passing: Verdict,
) -> None:
    """No way to end without a pass leaves a report whose every row is clean."""
    gates = [make_gate("latency", passing)] if ran else []
    evidence = make_evidence(*gates, expected=expected, changed=changed, exit_code=exit_code)
    outcome = worst([item.outcome for item in report_items(evidence)])
    assert (outcome is Outcome.PASS) == (headline(evidence).outcome is Outcome.PASS)


def test_evidence_without_any_run_is_an_inconclusive_row(make_evidence: MakeEvidence) -> None:
    """An empty report is not a clean one."""
    (item,) = report_items(replace(make_evidence(), runs=()))
    assert item.outcome is Outcome.INCONCLUSIVE


def test_every_row_has_an_id_of_its_own(
    make_gate: Make, make_evidence: MakeEvidence, passing: Verdict
) -> None:
    """The same gate twice, and the same environment twice, are four rows."""
    gate = make_gate("latency", passing)
    evidence = make_evidence(gate, gate)
    step = Step(at=datetime(2026, 1, 1, tzinfo=UTC), title="ramp", outcome=Outcome.PASS)
    evidence = replace(evidence, runs=evidence.runs * 2, steps=(step, step))
    ids = [item.node_id for item in report_items(evidence)]
    assert ids[0] == "staging::test_latency[staging-llama-2-7b]"
    assert len(ids) == len(set(ids)) == 6


def test_gates_on_one_load_share_its_latency_verdict(
    make_gate: Make, make_evidence: MakeEvidence, passing: Verdict, unknown: Verdict
) -> None:
    """The error-rate gate's plot shows the limit that the latency gate judged."""
    evidence = make_evidence(
        make_gate("error_rate", unknown, load="load"), make_gate("latency", passing, load="load")
    )
    assert [item.load_verdict for item in report_items(evidence)] == [passing, passing]
