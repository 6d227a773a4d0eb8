"""The default policy, unchanged: its loads decide its limits, a rollout by it gets to its end."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from support.world import (
    MODEL,
    PRODUCTION,
    RAMP,
    STAGING,
    ScriptedGates,
    World,
    builds,
    changes,
    decide,
)

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.alpha_spending import RepeatedGates
from vllm_rollout.judge.rate import rate_verdict
from vllm_rollout.load.arrivals import arrivals
from vllm_rollout.load.plan_from_policy import load_plan
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.evidence import GateRun
from vllm_rollout.model.load_result import LoadResult, RequestOutcome, RequestRecord
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.model.verdict import check
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.observe.probe import probe
from vllm_rollout.policy import Policy, load_policy
from vllm_rollout.pytest_plugin.judged_load import JudgedLoad
from vllm_rollout.pytest_plugin.load_questions import load_questions
from vllm_rollout.pytest_plugin.run_judged_load import load_watch
from vllm_rollout.rollout.engine import gate_and_promote
from vllm_rollout.rollout.soak_samples import keep_sample, sample_of
from vllm_rollout.simulator.running import RunningSimulator

POLICY = load_policy(None)
ASKED_AGAIN = RepeatedGates(confidence=POLICY.confidence, more=POLICY.inconclusive.asks_again)


def policy_of(environment: str) -> Policy:
    """The policy with the confidence by which a rollout asks the environment's gates first."""
    first = ASKED_AGAIN.first if environment == POLICY.order[-1] else POLICY.confidence
    return POLICY.model_copy(update={"confidence": first})


def judged(deployment: Deployment, failures: int, *, seconds: float = 0.4) -> dict[str, Verdict]:
    """What the gates on the deployment's own load say of it, by question."""
    policy = policy_of(deployment.environment)
    gates = policy.environments[deployment.environment].gates
    plan = load_plan(POLICY, deployment, base_url="http://h")
    times = [time for time in arrivals(plan) if time >= plan.warmup_seconds]
    bad = {len(times) * (i + 1) // (failures + 1) for i in range(failures)}
    requests = tuple(
        RequestRecord(
            number=number,
            intended=at,
            sent=at,
            first_token=None if number in bad else at + seconds / 4,
            end=at + seconds,
            outcome=RequestOutcome.HTTP_ERROR if number in bad else RequestOutcome.OK,
            completion_tokens=64,
        )
        for number, at in enumerate(times)
    )
    questions = load_questions(gates)
    watch = load_watch(policy, deployment, plan, others=len(gates.enabled) - len(questions))
    if watch is not None:
        watch.end(requests)
    load = JudgedLoad(
        result=LoadResult(plan=plan, started_at=0.0, requests=requests),
        confidence=policy.confidence,
        watch=watch,
    )
    return {question.name: load.verdict(question) for question in questions}


@pytest.mark.parametrize("failures", [0, 1, 2])
@pytest.mark.parametrize("environment", POLICY.order)
def test_each_default_load_decides_each_default_limit(environment: str, failures: int) -> None:
    """With a failure or two; by users' counters too, where nobody but the load asks."""
    deployment = Deployment("llama-2-7b", environment)
    verdicts = judged(deployment, failures)
    assert {v.outcome for v in verdicts.values()} <= {Outcome.PASS}, verdicts
    rules = POLICY.environments[environment]
    if live := rules.gates.live_metrics:
        plan = load_plan(POLICY, deployment, base_url="http://h")
        lasts = rules.load.duration + rules.load.warmup + rules.load.timeout
        assert live.window >= lasts + POLICY.inconclusive.deadline
        counted = sum(1 for _ in arrivals(plan))
        by_counters = rate_verdict(
            failures, counted, limit=live.error_rate, confidence=policy_of(environment).confidence
        )
        assert by_counters.passed, by_counters.reason


class JudgedGates(ScriptedGates):
    """The default gates: those on the load by the default load, the others by a simulator."""

    client: InferenceClient

    def _run(self, deployment: Deployment, kind: str, gates: Sequence[str]) -> GateRun:
        if kind == deployment.environment:
            gates = POLICY.gates_of(deployment.environment)
        run = super()._run(deployment, kind, gates)
        load = POLICY.environments[deployment.environment].load
        self.clock.sleep(load.duration + load.warmup)
        names = {"P95 latency": "latency", "error rate": "error_rate"}
        on_load = {names.get(q, "load_capacity"): v for q, v in judged(deployment, 1).items()}
        results = [
            replace(each, verdicts=(on_load.get(each.gate) or self._asked(),)) for each in run.gates
        ]
        return replace(run, gates=tuple(results))

    def _asked(self) -> Verdict:
        answer = self.client.ask("Hello", max_tokens=4, timeout_seconds=10)
        return check(answer.ok, f"HTTP {answer.status}")


def test_a_rollout_by_the_unchanged_default_policy_reaches_production(world: World) -> None:
    """Soak by samples, sign-off, two hours of ramp, a load of 22 minutes: by the world's clock."""
    world.overrides = {}
    gates = world.gates = JudgedGates(world.platform, world.clock)
    seen: dict[int, ProbeSample] = {}

    def probes(seconds: float) -> ProbeSample:
        minute = int(seconds // 60)
        if minute not in seen:
            seen[minute] = probe(gates.client, count=POLICY.watch.probes, timeout_seconds=10)
        return seen[minute]

    world.probes = probes
    soak = POLICY.environments["staging"].soak
    assert soak is not None
    (revision,) = world.platform.history(STAGING)
    with (
        RunningSimulator(model=MODEL, ttft_seconds=0, inter_token_seconds=0) as simulator,
        InferenceClient(simulator.url, model=MODEL) as gates.client,
    ):
        for ago in range(25 * 60, -1, -5):
            at = world.clock.now() - timedelta(minutes=ago)
            sample = sample_of(at, world.platform.replicas(STAGING), 1, probes(0))
            keep_sample(world.platform.store, STAGING, revision, sample, soak)
        evidence = gate_and_promote(world.tools())
        assert "waits for sign-off" in evidence.conclusion, evidence.conclusion
        decide(world, evidence)
        evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.OK, evidence.conclusion
    assert world.platform.serving(PRODUCTION) == (builds(world)[1], 4, 4)
    assert changes(world) == RAMP
    assert world.clock.seconds > 2 * 3600
