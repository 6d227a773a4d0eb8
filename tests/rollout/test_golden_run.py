"""One fixed rollout of the simulated world, compared with what it left before.

Where a change is meant, `VLLM_ROLLOUT_GOLDEN=write` writes the files anew; read their diff.
"""

import json
import os
from pathlib import Path

from support.world import World

from vllm_rollout.judge import Outcome
from vllm_rollout.model.evidence import Evidence, as_json, read_evidence
from vllm_rollout.report.changes import compare_runs, nothing_kept
from vllm_rollout.report.html import summary_html
from vllm_rollout.rollout.engine import gate_and_promote

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
EXAMPLE = Path(__file__).parents[2] / "reports" / "example" / "evidence.json"


def same_as_before(name: str, text: str) -> None:
    file = GOLDEN / name
    if os.environ.get("VLLM_ROLLOUT_GOLDEN") == "write":
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def written(evidence: Evidence) -> str:
    """The evidence as JSON, without the digest of a policy whose defaults may change, and others'
    that follow from it."""
    data = as_json(evidence)
    for run in data["runs"]:
        run["policy_digest"] = ""
    data["gate_runs"] = ["" for _ in data["gate_runs"]]
    data["previous"] = "" if data["previous"] else None
    return json.dumps(data, indent=1) + "\n"


def test_a_promotion_leaves_the_evidence_it_left_before(world: World) -> None:
    evidence = gate_and_promote(world.tools())
    same_as_before("promotion.json", written(evidence))


def test_a_rollback_leaves_the_evidence_it_left_before(world: World) -> None:
    world.gates.outcomes["production"] = Outcome.FAIL
    evidence = gate_and_promote(world.tools())
    same_as_before("rollback.json", written(evidence))


def test_the_example_evidence_looks_as_before(tmp_path: Path) -> None:
    evidence = read_evidence(EXAMPLE)
    alone = compare_runs(evidence, tmp_path / evidence.run_id, nothing_kept)
    same_as_before("example.html", summary_html(evidence, alone))
