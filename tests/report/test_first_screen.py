"""The first screen: the sentence for a decision, figures on a line, steps in time."""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from vllm_rollout.model.evidence import Attachment, Evidence, GateResult, Step
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.report.first_screen import Gauge, decision, gauge
from vllm_rollout.report.html import summary_html
from vllm_rollout.report.rows import gate_rows
from vllm_rollout.report.timeline import rollout_moments

Make = Callable[..., GateResult]
MakeEvidence = Callable[..., Evidence]


def test_a_run_that_waits_says_value_limit_failures_and_what_to_read(
    make_gate: Make, make_evidence: MakeEvidence, passing: Verdict
) -> None:
    answers = tuple(Attachment(title=f"Question {n}", text="Yes.") for n in range(2))
    evidence = make_evidence(
        make_gate("latency", replace(passing, percentile=95.0), load="load"),
        make_gate("outputs", Verdict(outcome=Outcome.PASS, reason="read"), attachments=answers),
        exit_code=3,
        awaits_sign_off=True,
    )
    load = evidence.runs[0].loads["load"]
    assert decision(evidence) == (
        f"P95 1.21 s of 3 s; {load.failures:,} of {load.total:,} failed; "
        "waits for QA: read 2 outputs"
    )


def test_what_went_wrong_comes_first_and_a_gate_is_named(
    make_gate: Make, make_evidence: MakeEvidence, failing: Verdict, unknown: Verdict
) -> None:
    own = make_gate("cold_start", replace(failing, outcome=Outcome.PASS, measured=61.0))
    gates = (own, make_gate("latency", failing, load="load"), make_gate("error_rate", unknown))
    back = make_evidence(*gates, exit_code=5, conclusion="Rolled back to revision 1. So.")
    figures = "latency 4.02 s of 3 s; 57 of 1,200 failed"
    assert decision(back) == f"Rolled back to revision 1. So; {figures}"
    evidence = make_evidence(*gates)
    assert decision(evidence) == (
        f"3 gates: 1 pass, 1 fail, 1 inconclusive; {figures}; failed: Latency; "
        "not known: Error rate"
    )
    run = evidence.runs[0]
    nothing = replace(run, loads={"load": replace(run.loads["load"], total=0, failures=0)})
    assert "0 of 0" not in decision(replace(evidence, runs=(nothing,)))
    silent = replace(failing, measured=math.inf, percentile=95.0)
    long = make_evidence(exit_code=6, conclusion="It serves nobody. " * 30)
    assert decision(long).startswith("It serves nobody. It")
    assert decision(long).endswith(" …")
    assert len(decision(long)) == 300
    unanswered = make_evidence(make_gate("a", silent, load="load"))
    assert "P95 without an answer, limit 3 s" in decision(unanswered)


def test_a_run_of_nothing_is_no_good_news(make_evidence: MakeEvidence) -> None:
    assert decision(replace(make_evidence(), runs=())) == "No gate ran"


@pytest.mark.parametrize(
    ("change", "drawn"),
    [
        ({}, Gauge(low=32.75, high=37.68, at=35.07, limit=86.96)),
        ({"upper": math.inf}, Gauge(low=32.75, high=100.0, at=35.07, limit=86.96)),
        ({"lower": None, "upper": None}, Gauge(low=35.07, high=35.07, at=35.07, limit=86.96)),
        ({"measured": math.inf, "upper": None}, Gauge(low=32.75, high=100, at=100, limit=86.96)),
        ({"measured": None}, None),
        ({"measured": math.nan}, None),
        ({"limit": None}, None),
        ({"measured": 0.0, "lower": 0.0, "upper": 0.0, "limit": 0.0}, None),
    ],
)
def test_a_tile_has_each_figure_in_its_place(
    change: dict[str, float | None], drawn: Gauge | None, passing: Verdict
) -> None:
    assert gauge(replace(passing, **change)) == drawn  # type: ignore[arg-type]


def test_results_of_one_gate_are_one_row_told_by_the_worst(
    make_gate: Make, make_evidence: MakeEvidence, passing: Verdict, failing: Verdict
) -> None:
    run = make_evidence(make_gate("a", passing), make_gate("a", failing), make_gate("b")).runs[0]
    rows = gate_rows(run, "staging")
    assert [(row.anchor, row.outcome) for row in rows] == [
        ("gate-staging-a", Outcome.FAIL),
        ("gate-staging-b", Outcome.INCONCLUSIVE),
    ]
    assert rows[0].telling == failing
    assert len(rows[0].verdicts) == 2


def test_steps_lie_on_one_axis_of_time_and_the_end_has_a_word(
    make_evidence: MakeEvidence,
) -> None:
    start = make_evidence().started
    steps = [
        Step(at=start, title="gates"),
        Step(at=start + timedelta(minutes=3), title="ramp", outcome=Outcome.PASS),
        Step(at=start + timedelta(minutes=12), title="exit 5", detail="back"),
    ]
    evidence = make_evidence(exit_code=5, steps=tuple(steps))
    moments = rollout_moments(evidence)
    assert [(m.left, m.width, m.lasted) for m in moments] == [
        (0.0, 25.0, "3m"),
        (25.0, 75.0, "9m"),
        (100.0, 0.0, "0s"),
    ]
    assert (moments[-1].title, moments[-1].outcome) == ("End of the rollout", Outcome.FAIL)
    alone = rollout_moments(replace(evidence, steps=(steps[0],), finished=start))
    assert [(m.left, m.width) for m in alone] == [(0.0, 0.0)]


@pytest.mark.parametrize(
    ("words", "form"),
    [
        (None, "--as NAME"),
        (("--as", "YOUR-NAME"), "--as NAME"),
        (("--key", "FILE"), "--key FILE"),
        ((), ""),
    ],
)
def test_the_sign_off_is_printed_in_the_form_that_the_policy_takes(
    words: tuple[str, ...] | None,
    form: str,
    make_gate: Make,
    make_evidence: MakeEvidence,
    passing: Verdict,
) -> None:
    evidence = make_evidence(make_gate("latency", passing), exit_code=3, awaits_sign_off=True)
    page = summary_html(evidence, sign_off_words=words)
    command = f"sign-off llama-2-7b --evidence {evidence.digest[7:23]} {form}".strip()
    assert f"{command}</code>" in page
    assert ("Where the policy asks for a key" in page) is (words is None)
