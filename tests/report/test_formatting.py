"""The words of verdicts and ends."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from vllm_rollout.model.evidence import Attachment, Evidence, GateResult
from vllm_rollout.model.text import one_line
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.report.formatting import (
    bound_text,
    cut,
    headline,
    report_title,
    risk_text,
    short_title,
    verdict_text,
)
from vllm_rollout.report.html import summary_html


@pytest.mark.parametrize(
    ("exit_code", "word", "outcome"),
    [
        (0, "PASS", Outcome.PASS),
        (1, "FAIL", Outcome.FAIL),
        (2, "FAIL", Outcome.FAIL),
        (3, "INCONCLUSIVE", Outcome.INCONCLUSIVE),
        (4, "INCONCLUSIVE", Outcome.INCONCLUSIVE),
        (5, "ROLLED BACK", Outcome.FAIL),
        (6, "NEEDS A PERSON", Outcome.FAIL),
        (130, "INTERRUPTED", Outcome.INCONCLUSIVE),
        (77, "FAIL", Outcome.FAIL),
    ],
)
def test_the_banner_says_how_the_rollout_ended(
    exit_code: int,
    word: str,
    outcome: Outcome,
    make_gate: Callable[..., GateResult],
    make_evidence: Callable[..., Evidence],
    passing: Verdict,
) -> None:
    """One word per exit code; an unknown code is a fail."""
    evidence = make_evidence(make_gate("latency", passing), exit_code=exit_code, conclusion="So.")
    end = headline(evidence)
    assert (end.word, end.outcome, end.sentence) == (word, outcome, "So.")
    assert report_title(evidence) == f"llama-2-7b: rollout {word}"


def test_a_run_that_only_waits_for_qa_says_so_with_the_command_and_the_outputs(
    make_gate: Callable[..., GateResult], make_evidence: Callable[..., Evidence], passing: Verdict
) -> None:
    read = Attachment(title="Tell me", text="It is <Paris>.")
    outputs = replace(make_gate("outputs", passing), attachments=(read,))
    evidence = make_evidence(outputs, exit_code=3, conclusion="Sign: --evidence DIGEST --as ME")
    waiting = replace(evidence, awaits_sign_off=True)
    assert headline(evidence).word == "INCONCLUSIVE"
    assert report_title(waiting) == "llama-2-7b: rollout WAITS FOR SIGN-OFF"
    top = summary_html(waiting).partition('id="gates"')[0]
    assert f"--evidence {waiting.digest[7:23]} --as ME" in top
    assert "It is &lt;Paris&gt;." in top
    assert "<details" not in top


def test_exit_code_0_over_gates_that_did_not_pass_is_no_pass(
    make_gate: Callable[..., GateResult], make_evidence: Callable[..., Evidence], failing: Verdict
) -> None:
    """The gates outweigh the exit code."""
    evidence = make_evidence(make_gate("latency", failing), exit_code=0)
    assert headline(evidence).word == "FAIL"


def test_gates_alone_are_named_by_environment_and_counted(
    make_gate: Callable[..., GateResult],
    make_evidence: Callable[..., Evidence],
    passing: Verdict,
    unknown: Verdict,
) -> None:
    """A gate that never ran is counted as inconclusive."""
    gates = (make_gate("latency", passing), make_gate("error_rate", unknown))
    evidence = make_evidence(*gates, expected=("latency", "error_rate", "soak"))
    assert report_title(evidence) == "llama-2-7b: staging gates INCONCLUSIVE"
    assert headline(evidence).sentence == "3 gates: 1 pass, 2 inconclusive."
    empty = make_evidence()
    assert headline(empty).word == "INCONCLUSIVE"
    assert headline(empty).sentence == "No gate ran."


def test_a_verdict_reads_with_the_bound_that_decided(passing: Verdict, failing: Verdict) -> None:
    """A pass by its upper bound, a fail by its lower one, neither by both."""
    assert verdict_text(passing) == "1.21 s (≤ 1.3 s at 95%)  limit 3 s  n=3,750"
    assert verdict_text(failing).split("\n") == [
        "4.02 s (≥ 3.91 s at 95%)  limit 3 s  n=3,750",
        "P95 is above the limit",
        "→ Add replicas or lower max-num-seqs.",
    ]
    between = replace(passing, outcome=Outcome.INCONCLUSIVE, limit=1.2, reason="too close")
    assert "(1.13 s – 1.3 s at 95%)" in verdict_text(between)


def test_a_missing_bound_is_not_invented(passing: Verdict) -> None:
    """One bound reads as one bound; none as a dash."""
    assert bound_text(replace(passing, upper=None)) == "≥ 1.13 s at 95%"
    assert bound_text(replace(passing, lower=None, upper=None)) == "–"
    plain = Verdict(outcome=Outcome.PASS, reason="2 of 2 replicas ready")
    assert verdict_text(plain) == "2 of 2 replicas ready"


def test_untrusted_text_is_one_printable_line() -> None:
    """No escape sequence, direction override, NUL or half a surrogate pair gets through."""
    assert one_line("a\x1b[31m\n b\u202e\x00\ud83d") == "a�[31m b���"
    assert one_line("Hellö 世界 😀") == "Hellö 世界 😀"


def test_long_text_is_cut_and_says_so() -> None:
    """What was left out is counted."""
    assert cut("x" * 2_000, 2_000) == "x" * 2_000
    assert cut("x" * 2_500, 2_000).endswith("\n… cut: 2,000 of 2,500 characters shown")


def test_a_title_is_short_up_to_its_explanation() -> None:
    """A gate's first docstring line names it before the colon or comma."""
    assert short_title("P95 latency: 95 of 100 requests, at most") == "P95 latency"
    assert short_title("Pods Running and Ready.") == "Pods Running and Ready"
    odd = (": all of it", "...", " ")
    assert [short_title(title) for title in odd] == [": all of it", "...", "–"]


def test_the_risk_of_a_whole_run_is_said_where_chance_has_a_part(
    make_evidence: Callable[..., Evidence],
    make_gate: Callable[..., GateResult],
    passing: Verdict,
    failing: Verdict,
) -> None:
    fact = Verdict(outcome=Outcome.PASS, reason="ready", n=1)
    gates = (make_gate("pods", fact), make_gate("latency", passing), make_gate("other", failing))
    (run,) = make_evidence(*gates).runs
    run = replace(run, confidence=0.95, family_risk="holm")
    assert risk_text(run) == (
        "2 verdicts from samples: a pass of all is wrong at most 5% of the time, "
        "and so is a fail of any (Holm)"
    )
    assert risk_text(replace(run, family_risk="none")).endswith("each fail on its own likewise")
    assert risk_text(replace(run, gates=gates[:1])) == ""
    assert risk_text(replace(run, confidence=None)) == ""
