"""The fixtures a gate is written with. They are public: a team's own gates use them too.

`deployment`  the deployment under test
`policy`      what must hold, for this model
`slo`         the gates' numbers in this environment, e.g. `slo.latency.limit_seconds`
`client`      an `InferenceClient` of the deployment
`servers`     clients of its address and of each ready replica
`preflight`   what is known of a build before it is deployed
`cluster`     its release: replicas, revisions, logs
`metrics`     what Prometheus knows of the deployment
`known_capacity`  what a capacity search found for the build under test
`judged_load` one load run, shared by every gate of the deployment that asks for it: `.verdict(…)`
`load`        its result, every request of it, if it ran to its end
`readings`    GPU memory, KV cache and other figures as they were read while the load ran
`verdict`     call it with a `Verdict` to end the gate
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from vllm_rollout.capacity.headroom import KnownCapacity
from vllm_rollout.capacity.record import capacity_on_record
from vllm_rollout.gate_runs import latency_before
from vllm_rollout.judge import Outcome, Verdict, check
from vllm_rollout.model.deployment import Deployment, newest_served
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.load_result import LoadResult
from vllm_rollout.model.observation import FiguresRead
from vllm_rollout.model.preflight_facts import Preflight
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.observe.deployment_metrics import DeploymentMetrics
from vllm_rollout.observe.figure_readings import FigureReader, Readings, readings_for_a_while
from vllm_rollout.policy import Gates, Latency, Policy
from vllm_rollout.pytest_plugin.gate_options import option
from vllm_rollout.pytest_plugin.gate_selection import deployment_of, is_bundled, uses
from vllm_rollout.pytest_plugin.judged_load import JudgedLoad
from vllm_rollout.pytest_plugin.load_progress_line import Progress
from vllm_rollout.pytest_plugin.load_questions import LatencyQuestion
from vllm_rollout.pytest_plugin.run_judged_load import judge_run, run_judged_load
from vllm_rollout.pytest_plugin.verdict_recorder import GateInconclusiveError, VerdictRecorder
from vllm_rollout.serving import Cluster, Servers
from vllm_rollout.settings import Settings
from vllm_rollout.yaml_file import read_mapping

SETTINGS = pytest.StashKey[Settings]()
LOADS = pytest.StashKey[dict[Deployment, JudgedLoad]]()
RECORDER = pytest.StashKey[VerdictRecorder]()
OUTCOMES = pytest.StashKey[dict[Deployment, dict[str, Outcome]]]()
"""Of the gates that judge no load."""
READINGS = pytest.StashKey[dict[Deployment, Sequence[FiguresRead]]]()
"""Figures that were read while a load ran."""
NO_TOKEN = pytest.StashKey[dict[Deployment, str]]()
"""Title of the gate that showed of a deployment that nobody gets a token from it."""


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Settings:
    """Settings of the run."""
    return request.config.stash[SETTINGS]


@pytest.fixture(scope="session")
def deployment(request: pytest.FixtureRequest) -> Deployment:
    """The deployment under test: one model in one environment."""
    parameter: Deployment = request.param
    return parameter


@pytest.fixture(scope="session")
def policy(settings: Settings, deployment: Deployment) -> Policy:
    """The policy as it applies to the model under test."""
    return settings.judged_by(deployment.model)


@pytest.fixture(scope="session")
def slo(policy: Policy, deployment: Deployment) -> Gates:
    """The numbers of the gates in the environment under test."""
    return policy.environments[deployment.environment].gates


@pytest.fixture(scope="session")
def client(settings: Settings, deployment: Deployment) -> Iterator[InferenceClient]:
    """An inference client of the deployment."""
    with settings.client(settings.url_of(deployment), deployment) as client:
        yield client


@pytest.fixture(scope="session")
def servers(settings: Settings, deployment: Deployment) -> Iterator[Servers]:
    """The address of the deployment, and its ready replicas one by one."""
    with ExitStack() as clients:
        yield Servers.of(settings, deployment, clients)


@pytest.fixture(scope="session")
def cluster(settings: Settings, deployment: Deployment, policy: Policy) -> Cluster:
    """The release of the deployment; skips when only a URL is known, and a skip never promotes."""
    if settings.platform is None:
        pytest.skip(
            "--base-url names a server, not a release: add --platform to ask for its replicas"
        )
    return Cluster(settings.platform, deployment, policy)


@pytest.fixture(scope="session")
def metrics(
    settings: Settings, policy: Policy, deployment: Deployment
) -> Iterator[DeploymentMetrics]:
    """Metrics of the deployment in Prometheus; skips where the policy names no Prometheus, and a
    skip never promotes.
    """
    platform = settings.platform
    found = DeploymentMetrics.of(
        policy, deployment, lambda: platform.replicas(deployment) if platform else None
    )
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
    platform = settings.reader()
    file = option(request.config, "--values")
    if file:
        values = read_mapping(Path(file))
    else:
        before = policy.previous(deployment.environment)
        source = settings.deployment(deployment.model, before) if before else deployment
        served = newest_served(platform.history(source))
        if served is None:
            raise UsageError(
                f"which build would come to {deployment} is unknown: {source} runs none",
                remedy="Name its values: --values FILE.",
            )
        values = platform.values(source, served.number)
    capacity = policy.environments[deployment.environment].replicas
    by_traffic = policy.ramps_by_traffic(deployment.environment)
    if by_traffic and newest_served(platform.history(deployment)):
        deployment = deployment.canary  # comes up at full size beside what serves
    users = deployment.environment == policy.order[-1]
    steps = [step.replicas_of(capacity) for step in policy.ramp] if users else []
    facts = platform.preflight(deployment, values, capacity=capacity, steps=steps)
    if facts is None:
        pytest.skip(f"the platform {platform.name} has nothing to look at before a deployment")
    return facts


@pytest.fixture(scope="session")
def known_capacity(settings: Settings, deployment: Deployment) -> KnownCapacity | None:
    """Capacity that `vllm-rollout capacity` found for the build under test; None without one."""
    policy = settings.policy.for_model(deployment.model)
    return capacity_on_record(settings.platform, deployment, policy)


@pytest.fixture
def verdict(request: pytest.FixtureRequest) -> VerdictRecorder:
    """Call it with a `Verdict`; the gate ends there unless it is a pass."""
    recorder = VerdictRecorder()
    request.node.stash[RECORDER] = recorder
    return recorder


def no_load_because(config: pytest.Config, deployment: Deployment) -> str:
    """Return why no load is sent to the deployment; empty where it is, or was."""
    if deployment in config.stash[LOADS]:
        return ""
    bad = [
        f"{gate} ({outcome})"
        for gate, outcome in config.stash[OUTCOMES].get(deployment, {}).items()
        if outcome is not Outcome.PASS
    ]
    return f"no load was sent: {', '.join(bad)} did not pass" if bad else ""


@pytest.fixture(scope="session")
def _load_run(
    request: pytest.FixtureRequest, settings: Settings, deployment: Deployment, policy: Policy
) -> JudgedLoad:
    """One load run per deployment, whatever becomes of the fixture's cache."""
    loads = request.config.stash[LOADS]
    if deployment not in loads:
        if why := no_load_because(request.config, deployment):
            raise GateInconclusiveError(why, pytrace=False)
        items = [item for item in request.session.items if deployment_of(item) == deployment]
        progress = Progress(request.config, deployment, policy.confidence)
        with progress, _figures_meanwhile(settings, policy, deployment) as readings:
            loads[deployment] = run_judged_load(
                settings,
                policy,
                deployment,
                on_progress=progress.load,
                others=sum(not is_bundled(item.path) for item in items),
                wholes=any(uses(item, "load") for item in items),
            )
            patience = policy.watch.probe_timeout_seconds
            request.config.stash[READINGS][deployment] = readings.new(patience)
        if loads[deployment].stopped:
            progress.notice(f"stopped early: {loads[deployment].stopped}")
    return loads[deployment]


@pytest.fixture
def judged_load(
    request: pytest.FixtureRequest, _load_run: JudgedLoad, policy: Policy, deployment: Deployment
) -> JudgedLoad:
    """The load run of the deployment, to ask for verdicts; inconclusive when it shows none.

    Raises:
        UnreachableError: requests failed, and the path to the deployment may be the cause.
    """
    if _load_run.path_errors is not None:
        raise _load_run.path_errors
    usable = judge_run(policy.environments[deployment.environment].load, _load_run)
    if not usable.passed:
        _end_with(request, usable.without_figures())  # those are the generator's, not the gate's
    return _load_run


@pytest.fixture
def finished_load(
    request: pytest.FixtureRequest, deployment: Deployment, policy: Policy
) -> JudgedLoad | None:
    """The load run that earlier gates of this session judged; None where there was none."""
    made: JudgedLoad | None = request.config.stash[LOADS].get(deployment)
    if made is None or made.path_errors is not None or made.stopped:
        return None
    usable = judge_run(policy.environments[deployment.environment].load, made)
    return made if usable.passed else None


@pytest.fixture
def own_latency(
    request: pytest.FixtureRequest, finished_load: JudgedLoad | None
) -> Callable[[Latency], Verdict | None]:
    """Return what the load's own requests say of a percentile: those of this run, or of the run
    whose gates are asked again; None where neither had any.
    """
    file = option(request.config, "--evidence")
    if finished_load is not None:
        return lambda latency: finished_load.verdict(LatencyQuestion(latency))
    return lambda latency: latency_before(Path(file), latency) if file else None


@pytest.fixture
def load(request: pytest.FixtureRequest, judged_load: JudgedLoad) -> LoadResult:
    """The whole load run of the deployment; a fail after an outage, and inconclusive when
    it does not show all of it.
    """
    if outage := judged_load.outage_verdict():
        _end_with(request, outage)
    if judged_load.stopped:
        reason = f"the load was stopped early ({judged_load.stopped}): this gate judges whole ones"
        remedy = "Fix the failed gate, or let the load run to its end with `load.early_stop: off`."
        _end_with(request, check(None, reason, remedy=remedy, n=judged_load.result.total))
    return judged_load.result


def _figures_meanwhile(settings: Settings, policy: Policy, deployment: Deployment) -> Readings:
    """Read figures during a load, where a gate on resources is on."""
    reader = None
    if settings.platform and policy.environments[deployment.environment].gates.resources:
        reader = FigureReader(policy, settings.platform, deployment)
    return Readings(reader, every=policy.watch.interval_seconds)


@pytest.fixture(scope="session")
def readings(
    request: pytest.FixtureRequest, cluster: Cluster, policy: Policy, deployment: Deployment
) -> Sequence[FiguresRead]:
    """Figures of the deployment, or of its canary while there is one: those that were read while
    this session's load ran, without a load as long those of `triggers.window` from now.
    """
    found = request.config.stash[READINGS].get(deployment, ())
    if len(found) > 1:
        return found
    return readings_for_a_while(cluster.platform, policy, deployment)


def _end_with(request: pytest.FixtureRequest, verdict: Verdict) -> None:
    """End the gate with a verdict that is no pass, whether or not it takes the recorder."""
    request.node.stash.setdefault(RECORDER, VerdictRecorder())(verdict)


FIXTURES: tuple[Any, ...] = (
    settings, deployment, policy, slo, client, servers, cluster, metrics, preflight, known_capacity,
    verdict, _load_run, judged_load, finished_load, own_latency, load, readings,
)  # fmt: skip
"""All of them: the suite's own gates use these, whatever a conftest calls the same."""
