"""A watch with a real Prometheus and real servers: probes meet one server, users both."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.prometheus import running_prometheus, until

from vllm_rollout.model.deployment import Deployment, Replica
from vllm_rollout.model.observation import Observation
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.observe.probe import probe
from vllm_rollout.observe.prometheus_window import live_metrics
from vllm_rollout.policy import load_policy
from vllm_rollout.rollout.run import SystemClock
from vllm_rollout.rollout.watcher import WatchEnd, Watcher
from vllm_rollout.simulator.running import RunningSimulator

pytestmark = pytest.mark.prometheus

PRODUCTION = Deployment("llama-2-7b", "production")
LABELS = {"namespace": "system", "service": "llama-2-7b-production"}
POLICY: dict[str, Any] = {
    "watch.interval": "200ms",
    "triggers.error_rate.for": "2s",
    "triggers.outage.for": "1m",
    "triggers.window": "10s",
    "triggers.max_gap": "8s",
    "prometheus.max_gap": "5s",
    "prometheus.timeout": "2s",
}


@pytest.fixture
def servers() -> Iterator[tuple[RunningSimulator, RunningSimulator]]:
    options = {"model": PRODUCTION.model, "ttft_seconds": 0, "inter_token_seconds": 0}
    with RunningSimulator(**options) as first, RunningSimulator(**options) as second:
        yield first, second


def watch(probed: str, prometheus: str, meanwhile: Callable[[], None], said: list[str]) -> WatchEnd:
    """Watch through the probes of one server; what is said of gaps is added to `said`."""
    policy = load_policy(None, overrides={**POLICY, "prometheus.url": prometheus})
    with (
        InferenceClient(probed, model=PRODUCTION.model) as client,
        live_metrics(policy, PRODUCTION) as live,
    ):

        def look() -> Observation:
            meanwhile()
            return Observation(
                probes=probe(client, count=10, timeout_seconds=10),
                replicas=[Replica(name="r", phase="Running", ready=True, restarts=0)],
                live=live.newest(),
            )

        watcher = Watcher(
            policy=policy,
            clock=SystemClock(),
            observe=look,
            on_tick=lambda _elapsed, _sight: None,
            on_found=lambda _found, gap: said.append(gap) if gap and not said else None,
            live=live.since_the_first,
        )
        return watcher.watch(timedelta(minutes=5))


def test_errors_that_only_users_meet_are_seen_by_prometheus_and_fire(
    tmp_path: Path, servers: tuple[RunningSimulator, RunningSimulator]
) -> None:
    probed, other = servers
    httpx.patch(f"{other.url}/simulator/dials", json={"error_rate": 1.0})

    def users() -> None:
        body = {"model": PRODUCTION.model, "prompt": "Hello", "max_tokens": 1}
        for _ in range(5):
            http.post("/v1/completions", json=body)

    with (
        running_prometheus(tmp_path, dict.fromkeys((probed.url, other.url), LABELS)) as url,
        httpx.Client(base_url=other.url) as http,
    ):
        until_scraped(url)
        end = watch(probed.url, url, users, [])

    assert end.fired.startswith("error rate by Prometheus: ")


def test_a_prometheus_that_goes_away_is_named_and_the_probes_go_on(
    tmp_path: Path, servers: tuple[RunningSimulator, RunningSimulator]
) -> None:
    probed, _ = servers
    with ExitStack() as stack:
        url = stack.enter_context(running_prometheus(tmp_path, {probed.url: LABELS}))
        until_scraped(url)
        looks, said = 0, list[str]()

        def meanwhile() -> None:
            nonlocal looks
            looks += 1
            if looks == 10:
                stack.close()
            if said:
                httpx.patch(f"{probed.url}/simulator/dials", json={"error_rate": 1.0})

        end = watch(probed.url, url, meanwhile, said)

    assert end.fired.startswith("error rate: ")
    (gap,) = said
    assert "error rate by Prometheus" in gap
    assert f"Prometheus at {url} gave no answer" in gap


def until_scraped(prometheus: str) -> None:
    def up() -> bool:
        found = http.get("/api/v1/query", params={"query": "up"}).json()
        return all(s["value"][1] == "1" for s in found["data"]["result"] or [{"value": "00"}])

    with httpx.Client(base_url=prometheus) as http:
        until(up, what="all targets up")
