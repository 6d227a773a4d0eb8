"""Question of a capacity search, from the policy: SLOs, traffic, precision."""

from dataclasses import replace

from vllm_rollout.capacity.model import SearchConfig
from vllm_rollout.capacity.rate_probe import Slos
from vllm_rollout.judge.goodput import GoodputLimits
from vllm_rollout.model.deployment import canonical_digest
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.policy import Policy


def slos_of(policy: Policy, environment: str) -> Slos:
    """The SLOs that the environment's gates judge under load.

    Where no gate is about errors, what `load_capacity` lets go unserved takes its place.

    Raises:
        UsageError: no gate there is judged under load.
    """
    gates = policy.environment(environment).gates
    latency, errors, goodput = gates.latency, gates.error_rate, gates.goodput
    unserved = gates.load_capacity.unserved if gates.load_capacity else None
    if latency is None and errors is None and goodput is None and unserved is None:
        raise UsageError(
            f"no gate of {environment} is about load, so there is no SLO to search by",
            remedy="Name another --environment, or give it a latency or error_rate gate.",
        )
    limits = None
    if goodput is not None:
        limits = GoodputLimits(
            ttft_seconds=goodput.ttft_seconds,
            inter_token_seconds=goodput.itl_seconds,
            latency_seconds=goodput.latency_seconds,
        )
    return Slos(
        percentile=latency.percentile if latency else 95.0,
        latency_seconds=latency.limit_seconds if latency else None,
        error_limit=errors.limit if errors else unserved,
        goodput=limits,
        goodput_target=goodput.target if goodput else 0.0,
    )


def expected_rate(policy: Policy, environment: str) -> float:
    """Requests a second that production is expected to bring."""
    rules = policy.environment(environment)
    return rules.gates.load_capacity.expected_rate if rules.gates.load_capacity else rules.load.rate


def goal_of(
    policy: Policy,
    environment: str,
    *,
    start_per_second: float | None = None,
    max_per_second: float | None = None,
    precision: float | None = None,
    most_probes: int | None = None,
) -> SearchConfig:
    """The search of the policy's `capacity` block; what is given goes before it.

    Raises:
        UsageError: the values do not fit each other, or `slos_of`'s.
    """
    rules, slos = policy.capacity, slos_of(policy, environment)
    highest = rules.max_rate if max_per_second is None else max_per_second
    start = start_per_second
    if start is None:
        start = min(expected_rate(policy, environment), highest)
    try:
        return SearchConfig(
            slos=slos,
            start_per_second=start,
            max_per_second=highest,
            precision=rules.precision if precision is None else precision,
            confidence=policy.confidence,
            most_probes=rules.most_probes if most_probes is None else most_probes,
            limit_seconds=late_after(policy, environment, slos),
            probe_seconds=rules.probe_seconds,
            proof_seconds=rules.proof_seconds,
        )
    except ValueError as error:
        raise UsageError(
            f"no search can be made of these numbers: {error}",
            remedy="Correct the policy's `capacity` block or the options.",
        ) from error


def late_after(policy: Policy, environment: str, slos: Slos) -> float:
    """The seconds after which a request is late: by an SLO, else when it is given up."""
    return slos.slow_seconds or policy.environment(environment).load.timeout_seconds


def steady(plan: LoadPlan) -> LoadPlan:
    """The plan's requests at one rate, for the search to choose.

    Raises:
        UsageError: they are a recording's, whose rates are its own.
    """
    if plan.trace:
        raise UsageError(
            "a replayed trace has rates of its own, so no capacity can be searched with it",
            remedy="Describe its requests as `load.traffic.workload`, and switch `replay` off.",
        )
    return replace(plan, shape=(), warmup_seconds=0.0)


def question_digest(policy: Policy, environment: str, replicas: int) -> str:
    """Digest of all that a capacity depends on but the build: SLOs, requests, replicas."""
    rules = policy.environment(environment)
    load = rules.load.model_dump(mode="json", by_alias=True)
    asked = ("arrivals", "timeout", "prompt", "max_tokens", "stream")
    return canonical_digest(
        {
            "slos": slos_of(policy, environment).asked,
            "goodput": rules.gates.goodput.model_dump(mode="json") if rules.gates.goodput else None,
            "requests": {key: load[key] for key in asked},
            "workload": load["traffic"]["workload"],
            "replicas": replicas,
        }
    )
