"""Changes since the last passing run: found where evidence is, told by figures and by build."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from vllm_rollout.model.deployment import Build, Deployment
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.evidence import Evidence, GateResult, write_evidence
from vllm_rollout.model.verdict import Verdict
from vllm_rollout.report.changes import Comparison, compare_runs, nothing_kept, rise_text
from vllm_rollout.report.html import summary_html

Make = Callable[..., GateResult]
MakeEvidence = Callable[..., Evidence]
NOW = "20260127-093000-0a1b"


def days_before(evidence: Evidence, days: int, run_id: str) -> Evidence:
    """The same run, so many days earlier."""
    run = evidence.runs[0]
    ago = timedelta(days=days)
    earlier = replace(run, started=run.started - ago, finished=run.finished - ago)
    return replace(evidence, run_id=run_id, runs=(earlier,))


def told(comparison: Comparison) -> list[tuple[str, str, str, str]]:
    found = (*comparison.build, *comparison.figures)
    return [(c.subject, c.before, c.now, rise_text(c.rise)) for c in found]


def test_values_bounds_limits_and_build_are_compared_with_the_last_pass(
    make_gate: Make, make_evidence: MakeEvidence, passing: Verdict, failing: Verdict, tmp_path: Path
) -> None:
    evidence = make_evidence(make_gate("latency", passing), make_gate("new", passing))
    before = make_evidence(
        make_gate("latency", replace(passing, measured=1.1, upper=1.2, limit=2.0)),
        make_gate("old", passing),
    )
    run = replace(
        before.runs[0], revision=2, build=Build(values_digest="sha256:12", model_revision="r6")
    )
    before = days_before(replace(before, runs=(run,)), 2, "20260125-093000-0a1b")
    older = days_before(evidence, 3, "20260124-093000-0a1b")
    lost = days_before(make_evidence(make_gate("latency", failing)), 1, "20260126-093000-0a1b")
    for each in (before, older, lost):
        write_evidence(each, tmp_path / each.run_id / "evidence.json")

    (found,) = compare_runs(evidence, tmp_path / NOW, nothing_kept)

    assert found.evidence is not None
    assert found.evidence.run_id == before.run_id
    assert told(found) == [
        ("model revision", "r6", "r7", ""),
        ("values", "12", f"{'ab' * 12}…", ""),
        ("revision", "2", "3", ""),
        ("Latency", "1.1 s (≤ 1.2 s at 95%)", "1.21 s (≤ 1.3 s at 95%)", "+10%"),
        ("Latency: limit", "2 s", "3 s", ""),
        ("New", "not gated", "PASS", ""),
        ("Old", "PASS", "not gated", ""),
    ]
    page = summary_html(evidence, [found])
    assert before.digest[7:23] in page
    assert "r6" in page


def test_a_run_is_compared_by_its_gates_and_not_by_its_preflight_checks(
    make_gate: Make, make_evidence: MakeEvidence, passing: Verdict, tmp_path: Path
) -> None:
    evidence = make_evidence(make_gate("latency", passing), make_gate("pods", passing))
    checked = make_evidence(make_gate("preflight", passing))
    whole = days_before(evidence, 2, "20260125-093000-0a1b")
    alone = days_before(checked, 1, "20260126-093000-0a1b")
    both = replace(evidence, runs=(*checked.runs, *evidence.runs, *checked.runs))

    (found,) = compare_runs(both, tmp_path / NOW, lambda _: [alone, whole])

    assert (found.run, found.evidence) == (evidence.runs[0], whole)


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ({"platform": "kubernetes"}, {}),
        ({"platform": "url", "base_url": "http://b"}, {"platform": "url", "base_url": "http://a"}),
    ],
)
def test_another_place_is_no_earlier_run(
    then: dict[str, str],
    now: dict[str, str],
    make_gate: Make,
    make_evidence: MakeEvidence,
    passing: Verdict,
    tmp_path: Path,
) -> None:
    evidence = make_evidence(make_gate("latency", passing))
    evidence = replace(evidence, runs=(replace(evidence.runs[0], **now),))
    here = days_before(evidence, 2, "20260125-093000-0a1b")
    there = days_before(evidence, 1, "20260126-093000-0a1b")
    there = replace(there, runs=(replace(there.runs[0], **then),))

    (found,) = compare_runs(evidence, tmp_path / NOW, lambda _: [there, here])

    assert found.evidence == here


def test_what_was_rolled_back_is_no_pass_and_what_was_gated_before_it_is(
    make_gate: Make, make_evidence: MakeEvidence, passing: Verdict, tmp_path: Path
) -> None:
    evidence = make_evidence(make_gate("latency", passing))
    production = replace(evidence.runs[0], deployment=Deployment("llama-2-7b", "production"))
    evidence = replace(evidence, runs=(*evidence.runs, production))
    ago = timedelta(days=1)
    earlier = [
        replace(each, started=each.started - ago, finished=each.finished - ago)
        for each in evidence.runs
    ]
    back = replace(evidence, run_id="20260126-093000-0a1b", runs=tuple(earlier), exit_code=5)

    staging, live = compare_runs(evidence, tmp_path / NOW, lambda _: [back])

    assert (staging.evidence, live.evidence) == (back, None)


def test_percentiles_of_two_kinds_are_not_compared(
    make_gate: Make, make_evidence: MakeEvidence, passing: Verdict, tmp_path: Path
) -> None:
    evidence = make_evidence(make_gate("latency", replace(passing, percentile=99.0)))
    before = make_evidence(make_gate("latency", replace(passing, percentile=95.0, measured=1.0)))
    before = days_before(before, 1, "20260126-093000-0a1b")

    (found,) = compare_runs(evidence, tmp_path / NOW, lambda _: [before])

    assert found.evidence == before
    assert found.figures == ()


def test_without_an_earlier_pass_the_page_says_so(
    make_gate: Make, make_evidence: MakeEvidence, passing: Verdict, tmp_path: Path
) -> None:
    evidence = make_evidence(make_gate("latency", passing))
    write_evidence(evidence, tmp_path / NOW / "evidence.json")
    broken = tmp_path / "20260125-093000-0a1b" / "evidence.json"
    broken.parent.mkdir()
    broken.write_text("{}")

    (found,) = compare_runs(evidence, tmp_path / NOW, nothing_kept)

    assert found.evidence is None
    page = summary_html(evidence, [found])
    assert "No earlier passing run of staging is known here" in page
    assert "the evidence of run 20260125-093000-0a1b cannot be read" in page


def test_the_store_is_asked_as_well_and_one_that_is_silent_is_named(
    make_gate: Make, make_evidence: MakeEvidence, passing: Verdict, tmp_path: Path
) -> None:
    evidence = make_evidence(make_gate("latency", passing))
    kept = days_before(evidence, 1, "20260126-093000-0a1b")
    (found,) = compare_runs(evidence, tmp_path / NOW, lambda _: [kept])
    assert found.evidence == kept
    assert not found.build
    assert all(change.same for change in found.figures)

    def silent(_: object) -> list[Evidence]:
        raise UnreachableError("no answer", address="https://cluster")

    (found,) = compare_runs(evidence, tmp_path / NOW, silent)
    assert found.evidence is None
    assert found.unread == "the evidence store cannot be read: no answer"
