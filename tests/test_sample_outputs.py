"""The outputs and numbers that the documentation shows are what the code prints.

Those of whole rollouts are held by tests/e2e/test_rollout.py.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.samples import DOCS, not_printed, sample

from vllm_rollout.capacity.headroom import capacity_found
from vllm_rollout.capacity.model import Capacity, StopReason
from vllm_rollout.judge.generator import generator_verdict
from vllm_rollout.judge.outage import Outage
from vllm_rollout.judge.rate import rate_verdict, requests_needed
from vllm_rollout.judge.sample_size import requests_needed_for_percentile
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.evidence import GateResult
from vllm_rollout.model.load_result import GeneratorFigures, RequestOutcome, RequestRecord
from vllm_rollout.model.verdict import Verdict
from vllm_rollout.platform.base import Lease, LeaseHeldError
from vllm_rollout.platform.local.values import parse_values
from vllm_rollout.policy import load_policy
from vllm_rollout.report.terminal import verdict_line


def gate_lines(title: str, verdict: Verdict) -> str:
    """What the terminal has of a gate with one verdict, and its words by themselves."""
    at = datetime(2026, 11, 24, tzinfo=UTC)
    result = GateResult(
        gate="g", item="g", title=title, verdicts=(verdict,), started=at, duration_seconds=1
    )
    return "\n".join([verdict_line(result), verdict.reason, f"→ {verdict.remedy}"])


def refusal_of(ask: Callable[[], object]) -> str:
    with pytest.raises(RolloutError) as refused:
        ask()
    return f"error: {refused.value}\n{refused.value.remedy}"


def test_the_numbers_of_requests_needed_are_computed() -> None:
    page = (DOCS / "explanation" / "verdicts.md").read_text(encoding="utf-8")
    for failures in (0, 1, 2, 5, 10):
        needed = [requests_needed(limit, 0.95, failures) for limit in (0.001, 0.005, 0.01)]
        assert f"| {failures} | {' | '.join(f'{each:,}' for each in needed)} |" in page
    few = {each: requests_needed_for_percentile(each, 0.95) for each in (50, 90, 95, 99, 99.9)}
    text = ", ".join(f"P{each:g} {count:,}" for each, count in few.items())
    assert text.replace("P50 5", "P50 5 requests") in " ".join(page.split())


def test_sample_outputs_are_what_the_code_says(tmp_path: Path) -> None:
    mistakes = tmp_path / "rollout.yaml"
    mistakes.write_text(
        "environments: {staging: {gates: {error_rate: {limt: 1%}}, load: {rate: 25}}}"
    )
    key = {"command": ["serve", "--port", "{port}", "--api-key", "x"]}
    late = GeneratorFigures(
        lag_seconds=0.312,
        cpu=0.989,
        dropped=0,
        total=54_012,
        workers=1,
        cpu_seconds_per_request=0.00098,
        rate_per_second=1000,
    )
    refused = "ConnectionRefusedError: [Errno 111] Connection refused"
    last = RequestRecord(number=1, intended=8.7, outcome=RequestOutcome.CONNECTION, error=refused)
    gone = Outage(began=5.7, seconds=3.0, requests=29, refused=True, refusals=False, last=last)
    found = Capacity(
        ending=StopReason.FOUND, confidence=0.95, lower=38, upper=44, estimate=41.2, proved=38.5
    )
    printed = {
        ("how-to.md", "Override numbers"): refusal_of(lambda: load_policy(mistakes)).replace(
            f"{tmp_path}/", ""
        ),
        ("how-to.md", "Too few requests"): gate_lines(
            "Error rate", rate_verdict(0, 496, limit=0.001, confidence=0.95, rate_per_second=50)
        ),
        ("how-to/load.md", "Was it the generator?"): gate_lines(
            "P95 latency", generator_verdict(late, max_lag_seconds=0.1, max_cpu=0.9)
        ),
        ("how-to/one-box.md", "1. Say what is served"): refusal_of(lambda: parse_values(key)),
        ("how-to/load.md", "Outages"): gone.reason(started_at=0.0),
        ("how-to/capacity.md", "Find the capacity"): capacity_found(
            found, expected_per_second=10, requests=12_000
        ).reason,
    }
    for (page, heading), text in printed.items():
        assert not_printed(sample(page, heading), text) == []
    held = Lease(
        name="llama-2-7b", holder="vm:4447:037c91ab", expires=datetime.now(UTC), version="1"
    )
    killed = sample("how-to/operate.md", "Go on after a killed run")
    (waiting,) = (line for line in killed if "being changed" in line)
    assert not_printed([waiting.partition(";")[0]], str(LeaseHeldError(held))) == []
