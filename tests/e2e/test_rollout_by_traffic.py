"""Rollouts by traffic weight through the real command line, on the local platform."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.test_rollout import MODEL, POLICY, PRODUCTION, Site, new_site

from vllm_rollout.model.errors import ExitCode
from vllm_rollout.platform.base import Weights

pytestmark = pytest.mark.long

BY_TRAFFIC = {
    "canary": {
        "by": "traffic",
        # Wide, so that a busy machine is no reason for another end.
        "latency": {"percentile": 50, "slower": "100%"},
        "error_rate": {"more": "10%"},
        "extend": "60s",
    },
    "ramp": [{"share": "20%", "hold": "4s"}, {"share": "100%", "hold": "0s"}],
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with new_site(tmp_path, POLICY | BY_TRAFFIC, monkeypatch) as site:
        yield site


def test_a_canary_as_good_takes_the_place_of_the_release_and_a_slower_one_does_not(
    site: Site,
) -> None:
    site.in_production("one")
    site.to_staging("two")
    good = site.run("gate-and-promote", MODEL)
    assert good.returncode == ExitCode.OK, good.stdout + good.stderr
    story = "\n".join(f"{step.title} {step.outcome}" for step in site.evidence().steps)
    assert "20% of the traffic of production/llama-2-7b goes to the canary" in story
    assert "canary against baseline, P50 latency: pass pass" in story
    assert "canary against baseline, error rate: pass pass" in story
    assert site.serving() == "two"

    site.to_staging("slow", ttft_seconds=0.5)
    slow = site.run("gate-and-promote", MODEL)
    assert slow.returncode == ExitCode.ROLLED_BACK, slow.stdout + slow.stderr
    evidence = site.evidence()
    assert "canary against baseline (fail): P50 is 0.5" in evidence.conclusion
    report = site.folder / "reports" / MODEL / evidence.run_id / "report.html"
    page = report.read_text()
    assert "canary against baseline, P50 latency: fail" in page
    assert "The last passing run before this: " in page, "compared with the run before"
    assert site.serving() == "two"
    assert [replica.ready for replica in site.production()] == [True, True]
    assert site.platform.weights(PRODUCTION) == Weights(stable=1)
    assert site.platform.history(PRODUCTION.canary) == []
