"""The fixtures a gate is written with. They are public: a team's own gates use them too.

`deployment`  the deployment under test
`policy`      what must hold, for this model
`slo`         the gates' numbers in this environment, e.g. `slo.latency.limit_seconds`
`client`      an `InferenceClient` of the deployment
`preflight`   what is known of a build before it is deployed
`cluster`     its release: replicas, revisions, logs
`metrics`     what Prometheus knows of the deployment
`load`        the result of one load run, shared by every gate of the deployment that asks for it
`known_capacity`  what a capacity search found for the build under test
`verdict`     call it with a `Verdict` to end the gate
"""

import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from vllm_rollout.capacity.record import capacity_on_record
from vllm_rollout.deployment import Deployment, Replica, Revision, newest_served
from vllm_rollout.errors import UsageError
from vllm_rollout.gating.progress import Progress
from vllm_rollout.gating.verdicts import GateInconclusiveError, VerdictRecorder
from vllm_rollout.judge import Outcome
from vllm_rollout.judge.diagnosis import Finding, findings_of
from vllm_rollout.judge.headroom import KnownCapacity
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.observe.load import LoadResult
from vllm_rollout.observe.load_remote import remotely
from vllm_rollout.observe.load_run import run_load
from vllm_rollout.observe.metrics import DeploymentMetrics
from vllm_rollout.observe.policy_load import load_plan
from vllm_rollout.platform.base import Platform
from vllm_rollout.policy import Gates, Policy
from vllm_rollout.preflight import Preflight
from vllm_rollout.settings import Settings
from vllm_rollout.yaml_file import read_mapping

SETTINGS = pytest.StashKey[Settings]()
LOADS = pytest.StashKey[dict[Deployment, LoadResult]]()
RECORDER = pytest.StashKey[VerdictRecorder]()
OUTCOMES = pytest.StashKey[dict[Deployment, dict[str, Outcome]]]()


@dataclass(frozen=True, slots=True)
class Cluster:
    """The release under test, as its platform shows it."""

    platform: Platform
    deployment: Deployment
    policy: Policy

    def replicas(self) -> list[Replica]:
        """The replicas that exist now."""
        return list(self.platform.replicas(self.deployment))

    def revision(self) -> Revision | None:
        """The newest revision, or None when the release does not exist."""
        history = self.platform.history(self.deployment)
        return history[-1] if history else None

    def findings(self) -> tuple[Finding, ...]:
        """Why each replica that is not ready is not."""
        symptoms = self.platform.symptoms(self.deployment)
        return findings_of(symptoms, self.policy, self.deployment.model)

    def logs(self, *, tail: int = 20) -> str:
        """The last log lines of each replica."""
        return self.platform.logs(self.deployment, tail=tail)


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Settings:
    """What the run works with."""
    return request.config.stash[SETTINGS]


@pytest.fixture(scope="session")
def deployment(request: pytest.FixtureRequest) -> Deployment:
    """The deployment under test: one model in one environment."""
    parameter: Deployment = request.param
    return parameter


@pytest.fixture(scope="session")
def policy(settings: Settings, deployment: Deployment) -> Policy:
    """The policy as it applies to the model under test."""
    return settings.policy.for_model(deployment.model)


@pytest.fixture(scope="session")
def slo(policy: Policy, deployment: Deployment) -> Gates:
    """The numbers of the gates in the environment under test."""
    return policy.environments[deployment.environment].gates


@pytest.fixture(scope="session")
def client(settings: Settings, deployment: Deployment) -> Iterator[InferenceClient]:
    """An inference client of the deployment."""
    with InferenceClient(
        settings.url_of(deployment), model=deployment.model, api_key=settings.api_key
    ) as client:
        yield client


@pytest.fixture(scope="session")
def cluster(settings: Settings, deployment: Deployment, policy: Policy) -> Cluster:
    """The release of the deployment; skips when only a URL is known, and a skip never promotes."""
    if settings.platform is None:
        pytest.skip(
            "--base-url names a server, not a release: add --platform to ask for its replicas"
        )
    return Cluster(settings.platform, deployment, policy)


@pytest.fixture(scope="session")
def metrics(policy: Policy, deployment: Deployment) -> Iterator[DeploymentMetrics]:
    """What Prometheus knows of the deployment; skips where the policy names no Prometheus, and a
    skip never promotes.
    """
    found = DeploymentMetrics.of(policy, deployment)
    if found is None:
        pytest.skip("the policy names no Prometheus: set `prometheus.url`")
    with closing(found):
        yield found


@pytest.fixture(scope="session")
def preflight(
    request: pytest.FixtureRequest, settings: Settings, deployment: Deployment, policy: Policy
) -> Preflight:
    """The facts about a build that may be deployed next: that of `--values`, or of the environment
    before; in the first environment the one that runs there.
    """
    platform = settings.require_platform()
    file = request.config.getoption("values")
    if file:
        values = read_mapping(Path(file))
    else:
        before = policy.previous(deployment.environment)
        source = deployment if before is None else replace(deployment, environment=before)
        served = newest_served(platform.history(source))
        if served is None:
            raise UsageError(
                f"which build would come to {deployment} is unknown: {source} runs none",
                remedy="Name its values: --values FILE.",
            )
        values = platform.values(source, served.number)
    capacity = policy.environments[deployment.environment].replicas
    facts = platform.preflight(deployment, values, capacity=capacity)
    if facts is None:
        pytest.skip(f"the platform {platform.name} has nothing to look at before a deployment")
    return facts


@pytest.fixture(scope="session")
def known_capacity(
    settings: Settings, deployment: Deployment, policy: Policy
) -> KnownCapacity | None:
    """What `vllm-rollout capacity` found for the build under test; None where it did not search."""
    return capacity_on_record(settings.platform, deployment, policy)


@pytest.fixture
def verdict(request: pytest.FixtureRequest) -> VerdictRecorder:
    """Call it with a `Verdict`; the gate ends there unless it is a pass."""
    recorder = VerdictRecorder()
    request.node.stash[RECORDER] = recorder
    return recorder


@pytest.fixture(scope="session")
def _load_result(
    request: pytest.FixtureRequest, settings: Settings, deployment: Deployment, policy: Policy
) -> LoadResult:
    """One load run per deployment, whatever becomes of the fixture's cache."""
    loads = request.config.stash[LOADS]
    if deployment not in loads:
        bad = [
            f"{gate} ({outcome})"
            for gate, outcome in request.config.stash[OUTCOMES].get(deployment, {}).items()
            if outcome is not Outcome.PASS
        ]
        if bad:
            raise GateInconclusiveError(
                f"no load was sent: {', '.join(bad)} did not pass", pytrace=False
            )
        pods = settings.load_pods(deployment)
        plan = load_plan(policy, deployment, base_url=settings.load_url_of(deployment, pods))
        plan = replace(plan, workers=settings.workers or plan.workers)
        progress = Progress(request.config, deployment)
        with tempfile.TemporaryDirectory(prefix="vllm-rollout-load-") as folder:
            loads[deployment] = run_load(
                plan,
                api_key=settings.api_key,
                on_progress=progress.load,
                work_dir=Path(folder),
                start=remotely(pods) if pods else None,
            )
    return loads[deployment]


@pytest.fixture
def load(_load_result: LoadResult, policy: Policy, deployment: Deployment) -> LoadResult:
    """The load run of the deployment; inconclusive when it does not show the whole run."""
    if _load_result.incomplete:
        raise GateInconclusiveError(
            f"the load run is incomplete: {_load_result.incomplete}", pytrace=False
        )
    longest = policy.environments[deployment.environment].load.max_lag_seconds
    lag = _load_result.lag_percentile(99)
    if not lag <= longest:
        raise GateInconclusiveError(
            f"the generator was the bottleneck: at P99 requests left {lag * 1000:.0f} ms late, "
            f"more than `load.max_lag` ({longest * 1000:.0f} ms)\n"
            "Raise `load.workers`, or give the generator a machine of its own.",
            pytrace=False,
        )
    return _load_result
