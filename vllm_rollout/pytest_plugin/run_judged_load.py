"""Makes a deployment's one load run as the policy asks, watched where the policy says so."""

import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from msgspec import json
from msgspec.structs import asdict

from vllm_rollout.judge import Verdict
from vllm_rollout.judge.alpha_spending import AlphaSpending
from vllm_rollout.judge.generator import generator_verdict
from vllm_rollout.judge.outage import OutageLimits, find_outage
from vllm_rollout.judge.replicas import CACHE_REMEDY
from vllm_rollout.load.plan_from_policy import load_plan
from vllm_rollout.load.run_load import LoadProgress, run_load
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import LoadResult
from vllm_rollout.policy import Load, Policy
from vllm_rollout.pytest_plugin.judged_load import JudgedLoad, LoadWatch, Watching, stop_reason
from vllm_rollout.pytest_plugin.load_questions import load_questions
from vllm_rollout.settings import Settings


def run_judged_load(
    settings: Settings,
    policy: Policy,
    deployment: Deployment,
    *,
    on_progress: Callable[[LoadProgress], None],
    others: int,
    wholes: bool,
) -> JudgedLoad:
    """Send the load of the deployment's environment, from here or from pods.

    `others` are further gates, among whose verdicts a fail has to stand too; `wholes` is whether
    some gate judges the load as a whole.

    Raises:
        RolloutError: the load cannot be made as asked.
    """
    from vllm_rollout.load.remote_generator import remotely

    environment = policy.environments[deployment.environment]
    pods = settings.load_pods(deployment)
    plan = load_plan(policy, deployment, base_url=settings.load_url_of(deployment, pods))
    plan = replace(plan, workers=settings.workers or plan.workers)
    watch = load_watch(policy, deployment, plan, others=others, wholes=wholes)
    outage = _outage_limits(environment.load)
    before = settings.path_errors(deployment)
    with tempfile.TemporaryDirectory(prefix="vllm-rollout-load-") as folder:
        result = run_load(
            plan,
            api_key=settings.api_key,
            on_progress=on_progress,
            work_dir=Path(folder),
            enough=watch.enough if watch else None,
            start=remotely(pods) if pods else None,
        )
    if watch:
        watch.end(result.requests)
    problem = settings.path_errors(deployment).since(before) if pods is None else None
    kept = _keep(result, deployment) if environment.load.keep_requests else ""
    return JudgedLoad(
        result=result,
        confidence=policy.confidence,
        watch=watch,
        cores=None if pods else len(os.sched_getaffinity(0)),
        stopped=stop_reason(result, watch) if watch else "",
        outage=find_outage(result.requests, outage) if outage else None,
        requests_file=kept,
        path_errors=problem if result.failures else None,
    )


def load_watch(
    policy: Policy, deployment: Deployment, plan: LoadPlan, *, others: int, wholes: bool = False
) -> LoadWatch | None:
    """Return what watches the deployment's load; None where nothing would end it before its time.

    `others` and `wholes` are as in `run_judged_load`.
    """
    environment = policy.environments[deployment.environment]
    questions = load_questions(environment.gates)
    watching = _watching(policy, environment.load, plan, len(questions) + others, wholes=wholes)
    outage = _outage_limits(environment.load) if questions else None
    return LoadWatch(questions, plan, watching, outage) if watching or outage else None


def _keep(result: LoadResult, deployment: Deployment) -> str:
    """Write the requests where whoever writes the evidence finds them and puts them beside it."""
    folder = Path(tempfile.mkdtemp(prefix="vllm-rollout-requests-"))
    path = folder / f"requests-{deployment.environment}.jsonl"
    write_requests(result, path)
    return str(path)


def _watching(
    policy: Policy, load: Load, plan: LoadPlan, gates: int, *, wholes: bool
) -> Watching | None:
    stop = load.early_stop
    if stop is None:
        return None
    return Watching(
        spending=AlphaSpending(
            confidence=policy.confidence,
            early=stop.risk,
            passes=stop.when == "decided",
            gates=max(1, gates),
            method=policy.family_risk,
        ),
        burst=max(1, math.ceil((plan.peak_rate_per_second or 0) * stop.stall_seconds)),
        wholes=wholes,
    )


def _outage_limits(load: Load) -> OutageLimits | None:
    rules = load.outage
    return (
        None
        if rules is None
        else OutageLimits(
            failing_seconds=rules.failing.total_seconds(),
            refused_seconds=rules.refused.total_seconds(),
            requests=rules.requests,
        )
    )


def judge_run(load: Load, judged: JudgedLoad) -> Verdict:
    """Return the verdict whether the load can be judged: complete, and the generator kept up.

    Never a fail: what is wrong here is not the server's doing.
    """
    result = judged.result
    generator = generator_verdict(
        result.generator,
        max_lag_seconds=load.max_lag_seconds,
        max_cpu=load.max_cpu,
        cores=judged.cores,
    )
    if not result.incomplete:
        return generator
    reasons = [f"the load run is incomplete: {result.incomplete}"]
    reasons += [] if generator.passed else [generator.reason]
    remedy = generator.remedy
    if result.unended:
        remedy = f"See what ended {', '.join(result.unended)}, and run the gates again."
    elif any(request.cached for request in result.requests):
        remedy = CACHE_REMEDY
    again = "Run the gates again; if it is so again, see what ends the generator's processes."
    return generator.inconclusive_because("; ".join(reasons), remedy or again)


def write_requests(result: LoadResult, path: Path) -> None:
    """Write a JSON object for each judged request, in the order of sending.

    Its keys are the fields of `RequestRecord`; times are seconds since the start of the run, and
    one that is missing is null.
    """
    with path.open("wb") as file:
        file.writelines(json.encode(asdict(record)) + b"\n" for record in result.requests)
