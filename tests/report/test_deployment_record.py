"""The deployment record."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.evidence import Evidence, GateResult, Override, Step
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.report.deployment_record import write_record

FIRED = datetime(2026, 1, 27, 9, 44, 10, tzinfo=UTC)


@pytest.fixture
def rolled_back(
    make_gate: Callable[..., GateResult], make_evidence: Callable[..., Evidence], passing: Verdict
) -> Evidence:
    """A rollout that was undone."""
    return make_evidence(
        make_gate("latency", passing),
        exit_code=5,
        conclusion="Rolled back to revision 4: error rate 21% > 5% for 30s",
        steps=(Step(at=FIRED, title="trigger fired", detail="error rate", outcome=Outcome.FAIL),),
    )


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """What a record is told beside the evidence."""
    return {
        "folder": tmp_path / "deployments",
        "deployer": "qa",
        "reason": "New model version with improved accuracy",
        "rollback_command": "vllm-rollout rollback llama-2-7b -e production --to 4",
        "undo_command": "helm rollback llama-2-7b-production 4 -n system --wait",
        "report_path": tmp_path / "reports" / "llama-2-7b" / "run 1" / "report.html",
        "version": "vllm-deployment-0.1.0",
        "previous": "revision 4, build 0123456789ab",
    }


def test_a_record_has_the_workflows_fields_and_why_it_was_rolled_back(
    rolled_back: Evidence, options: dict[str, Any], tmp_path: Path
) -> None:
    """Date, deployer, version, reason, rollback; the end, the evidence and the times."""
    path = write_record(rolled_back, undelivered=["rolled-back to pager: HTTP 503"], **options)
    assert path.name == "llama-2-7b-20260127-094200.md"
    text = path.read_text(encoding="utf-8")
    for line in (
        "# Deployment: llama-2-7b to Production",
        "- Date: 2026-01-27 09:42:00 UTC",
        "- Deployer: qa",
        "- Version: vllm-deployment-0.1.0",
        "- Reason: New model version with improved accuracy",
        "- Rollback: vllm-rollout rollback llama-2-7b -e production --to 4",
        "- Rollback without vllm-rollout: helm rollback llama-2-7b-production 4 -n system --wait",
        "- Outcome: ROLLED BACK (exit code 5)",
        f"- Evidence: [{rolled_back.digest}](../reports/llama-2-7b/run%201/evidence.json)",
        "- Previous: revision 4, build 0123456789ab",
        "- Message that did not arrive: rolled-back to pager: HTTP 503",
        "## Why it was rolled back",
        "| 2026-01-27 09:44:10 UTC | trigger fired | FAIL | error rate |",
        "| staging | Latency | PASS | 1.21 s (≤ 1.3 s at 95%) limit 3 s n=3,750 |",
    ):
        assert line in text.split("\n")
    assert "](../reports/llama-2-7b/run%201/report.html)" in text
    assert str(tmp_path) not in text


def test_a_promotion_says_nothing_of_rollback(
    rolled_back: Evidence, options: dict[str, Any]
) -> None:
    """Only a rollout that was rolled back explains one; what is not given is derived or said."""
    promoted = replace(rolled_back, exit_code=0, conclusion="Promoted")
    build = promoted.runs[0].build
    assert build is not None
    runs = (replace(promoted.runs[0], images=("sha256:1234",)), *promoted.runs[1:])
    promoted = replace(promoted, runs=runs)
    path = write_record(promoted, **{**options, "version": "", "previous": "", "undo_command": ""})
    text = path.read_text(encoding="utf-8")
    assert "rolled back" not in text
    assert "without vllm-rollout" not in text
    assert f"- Version: build {build.short}, model revision r7, image sha256:1234\n" in text
    assert "- Previous: not recorded\n" in text


def test_an_emergency_override_is_named_with_what_it_passed_over(
    rolled_back: Evidence, options: dict[str, Any]
) -> None:
    override = Override(by="Ada *L*", reason="<b>fix</b>", passed_over=("the soak", "a freeze"))
    text = write_record(replace(rolled_back, override=override), **options).read_text()
    line = r"- Emergency override: by Ada \*L\*: &lt;b&gt;fix&lt;/b&gt;; passed over: "
    assert line + "the soak; a freeze" in text


def test_no_record_is_overwritten(rolled_back: Evidence, options: dict[str, Any]) -> None:
    """Two records of one second stand side by side."""
    first, second = write_record(rolled_back, **options), write_record(rolled_back, **options)
    assert second.name == "llama-2-7b-20260127-094200-2.md"
    assert first.read_text(encoding="utf-8") == second.read_text(encoding="utf-8")


def test_untrusted_text_stays_text(hostile: Evidence, options: dict[str, Any]) -> None:
    """No HTML, link, code, heading or extra table cell comes out of a field."""
    bad = "a | b `c` [d](javascript:e) ![f](g)\n# heading\n<b>h</b>"
    evidence = replace(hostile, model="llama-2-7b", conclusion=bad)
    text = write_record(evidence, **{**options, "reason": bad}).read_text(encoding="utf-8")
    assert "<" not in text
    assert "\x1b" not in text
    assert "\n- Reason: a \\| b \\`c\\` \\[d\\](javascript:e) !\\[f\\](g) # heading &lt;b" in text
    columns = [re.sub(r"\\.", "", line).count("|") for line in text.split("\n") if line[:1] == "|"]
    assert set(columns) == {5}


def test_a_model_that_is_no_name_gets_no_file(
    hostile: Evidence, options: dict[str, Any], tmp_path: Path
) -> None:
    """A path in place of a model's name writes nothing anywhere."""
    with pytest.raises(UsageError, match="not a DNS-1123 label"):
        write_record(replace(hostile, model="../../escape"), **options)
    assert list(tmp_path.iterdir()) == []
