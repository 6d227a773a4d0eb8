"""The gate live_metrics as a user runs it: by a real Prometheus, and by one that is not there."""

from pathlib import Path

import httpx
import pytest
from support.forked import pytest_in
from support.prometheus import running_prometheus, until

from vllm_rollout.judge import Outcome
from vllm_rollout.model.evidence import GateResult, read_evidence
from vllm_rollout.resources import GATES
from vllm_rollout.simulator.running import RunningSimulator

MODEL = "llama-2-7b"
LABELS = {"namespace": "system", "service": f"{MODEL}-production"}


def gate(folder: Path, server: str, prometheus: str) -> dict[str, GateResult]:
    """The results of the gate, by the name of the test."""
    evidence = folder / "evidence.json"
    evidence.unlink(missing_ok=True)
    command = [str(GATES / "test_live_metrics.py"), "-p", "no:hypothesispytest"]
    command += ["-m", "production", "--model", MODEL, "--base-url", server]
    command += ["--policy-set", f"prometheus.url={prometheus}", "--evidence", str(evidence)]
    for change in ("max_gap=20m", "requests.failed=5.."):
        command += ["--policy-set", f"prometheus.{change}"]
    for change in ("error_rate=5%", "window=15m"):
        command += ["--policy-set", f"environments.production.gates.live_metrics.{change}"]
    command += ["--confidence", "96%"]  # as gates that may be asked again
    done = pytest_in(folder, command)
    assert evidence.exists(), done.stdout
    return {g.item.partition("[")[0]: g for g in read_evidence(evidence).runs[0].gates}


def complete(server: str, count: int) -> None:
    body = {"model": MODEL, "prompt": "Hello", "max_tokens": 1}
    with httpx.Client(base_url=server) as http:
        for _ in range(count):
            http.post("/v1/completions", json=body)


@pytest.mark.prometheus
def test_it_passes_on_good_requests_fails_on_bad_ones_and_knows_nothing_without_any(
    tmp_path: Path,
) -> None:
    with (
        RunningSimulator(model=MODEL, ttft_seconds=0, inter_token_seconds=0) as server,
        running_prometheus(tmp_path, {server.url: LABELS}) as prometheus,
        httpx.Client(base_url=prometheus) as http,
    ):

        def seen() -> float:
            query = {"query": 'sum(http_requests_total{handler="/v1/completions"})'}
            found = http.get("/api/v1/query", params=query).json()["data"]["result"]
            return float(found[0]["value"][1]) if found else 0

        complete(server.url, 1)
        until(lambda: seen() == 1, what="the first request")
        found = gate(tmp_path, server.url, prometheus)  # one request at most: too few
        assert {g.outcome for g in found.values()} == {Outcome.INCONCLUSIVE}
        assert {v.confidence for g in found.values() for v in g.verdicts} == {0.96}

        complete(server.url, 120)
        until(lambda: seen() == 121, what="the requests")
        found = gate(tmp_path, server.url, prometheus)
        assert {g.outcome for g in found.values()} == {Outcome.PASS}, found
        assert found["test_live_latency"].verdicts[0].n >= 120

        httpx.patch(f"{server.url}/simulator/dials", json={"error_rate": 1.0})
        complete(server.url, 40)
        until(lambda: seen() == 161, what="the failures")
        assert gate(tmp_path, server.url, prometheus)["test_live_error_rate"].outcome == "fail"


def test_a_prometheus_that_does_not_answer_never_passes(tmp_path: Path) -> None:
    found = gate(tmp_path, "http://127.0.0.1:9", "http://127.0.0.1:9")
    assert {g.outcome for g in found.values()} == {Outcome.INCONCLUSIVE}
    assert {g.unreachable for g in found.values()} == {"http://127.0.0.1:9"}
