"""`vllm-rollout explain`: every verdict of an evidence file, and how it was reached."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vllm_rollout.cli.main import app
from vllm_rollout.judge import Verdict
from vllm_rollout.model.evidence import Evidence, GateResult, read_evidence, write_evidence

EXAMPLE = Path(__file__).parents[2] / "reports" / "example" / "evidence.json"


def explained(path: Path) -> str:
    result = CliRunner().invoke(app, ["explain", str(path)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_every_verdict_of_the_example_is_one_sentence_a_table_and_its_working():
    evidence = read_evidence(EXAMPLE)
    shown = " ".join(explained(EXAMPLE).split())
    assert evidence.digest in shown
    verdicts = [v for run in evidence.runs for gate in run.gates for v in gate.verdicts]
    assert verdicts
    for verdict in verdicts:
        assert " ".join(f"{verdict.outcome.upper()}: {verdict.reason}".split()) in shown
    assert "Bounds: order statistics" in shown
    assert "Bounds: Clopper–Pearson, computed again here and found the same" in shown


def test_what_kept_a_gate_from_knowing_and_what_would_change_it_are_said(
    make_evidence: Callable[..., Evidence],
    make_gate: Callable[..., GateResult],
    unknown: Verdict,
    tmp_path: Path,
):
    path = tmp_path / "evidence.json"
    write_evidence(make_evidence(make_gate("error_rate", unknown)), path)
    shown = " ".join(explained(path).split())
    assert "INCONCLUSIVE: 400 requests cannot show an error rate below 0.1%." in shown
    assert "What would change it: Send at least 2,995 requests." in shown


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda document: document["evidence"].update(model="other"), "changed after it was"),
        (lambda document: document.pop("digest"), "is not evidence"),
        (lambda document: document["evidence"].update(runs=3), "is not evidence"),
        (lambda document: document["evidence"].pop("schema"), "changed after it was"),
        (lambda document: document["evidence"].update(schema=3), "of vllm-rollout or later"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_not_explained(change, said, tmp_path: Path):
    document = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    change(document)
    path = tmp_path / "evidence.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    result = CliRunner().invoke(app, ["explain", str(path)])
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
