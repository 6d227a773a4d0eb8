"""Rollouts in the simulated world with a Prometheus that knows nothing, or knows better."""

from collections.abc import Callable

import pytest
from support.world import UNATTENDED, World

from vllm_rollout.judge import Outcome
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.request_counts import (
    ErrorRates,
    LatencyCounts,
    LiveCounts,
    RequestCounts,
    nothing_known,
)
from vllm_rollout.observe.prometheus_window import NoMetrics
from vllm_rollout.rollout import observer as observer_module
from vllm_rollout.rollout.engine import gate_and_promote


class Scripted(NoMetrics):
    """A Prometheus that says at each moment what a test has it say."""

    def __init__(self, counts: LiveCounts) -> None:
        self.counts = counts

    def newest(self) -> LiveCounts:
        return self.counts

    since_the_first = newest


@pytest.fixture
def says(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[LiveCounts], None]:
    """Put a Prometheus into the world that says so."""

    def says(counts: LiveCounts) -> None:
        world.overrides = {**UNATTENDED, "prometheus.url": "http://prometheus"}
        monkeypatch.setattr(observer_module, "live_metrics", lambda *_: Scripted(counts))

    return says


def test_a_prometheus_that_is_down_holds_no_rollout_up_and_is_named(
    world: World, says: Callable[[LiveCounts], None]
) -> None:
    says(nothing_known("no answer"))
    told: list[tuple[str, str]] = []
    tools = world.tools(notify=lambda kind, text, **_: told.append((kind, text)))

    evidence = gate_and_promote(tools)

    assert evidence.exit_code == ExitCode.OK
    gaps = [s for s in evidence.steps if "Prometheus" in s.title + s.detail]
    assert {s.outcome for s in gaps} <= {Outcome.INCONCLUSIVE, None}
    assert any("from Prometheus: error rate by Prometheus" in s.detail for s in gaps)
    assert any("no answer" in s.detail for s in gaps)
    assert any(kind == "blind" and "no answer" in text for kind, text in told)


def test_what_only_users_meet_undoes_a_ramp_step(
    world: World, says: Callable[[LiveCounts], None]
) -> None:
    failing = RequestCounts(source="gateway", total=500, failures=100, failures_at_most=100)
    says(
        LiveCounts(
            rates=ErrorRates(sources=(failing,)), latency=LatencyCounts(unknown="no histogram")
        )
    )

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert "error rate by Prometheus: 20%" in evidence.conclusion
    assert world.platform.calls == ["apply production 1/4", "rollback production 1"]
