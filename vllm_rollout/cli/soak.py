"""`vllm-rollout soak`."""

from datetime import timedelta
from typing import Annotated

import typer

from vllm_rollout.cli import options
from vllm_rollout.judge.soak import SoakState, soak_text
from vllm_rollout.model.deployment import Deployment, Revision, newest_served
from vllm_rollout.model.errors import RolloutError, UsageError
from vllm_rollout.model.units import UnitError, parse_duration
from vllm_rollout.next_command import next_command
from vllm_rollout.observe.probe import probe
from vllm_rollout.platform.writer import writer_of
from vllm_rollout.rollout.run import SystemClock
from vllm_rollout.rollout.soak_samples import keep_sample, observed_by, sample_of, soak_of
from vllm_rollout.settings import Settings


@options.about_releases
def soak_command(
    model: options.Model,
    environment: options.EnvironmentBeforeLast = None,
    every: Annotated[str, typer.Option("--every", help="time between probes")] = "1m",
    once: Annotated[
        bool, typer.Option("--once", help="probe once and exit, for a CronJob or a CI schedule")
    ] = False,
    *,
    choice: options.Choice,
) -> None:
    """Probe MODEL's health until its soak is over, and keep the samples.

    Use it where no Prometheus is configured: a soak counts only observed time. Each probe
    asks the platform for ready replicas and restarts, /health, and for a token. --environment is
    by default the one before the last. It may be stopped and started: a pause longer than the
    policy's soak.max_gap does not count.
    """
    try:
        pause = parse_duration(every)
    except UnitError as error:
        raise UsageError(f"--every {every}: {error}", remedy="Write 1m.") from error
    if pause < timedelta(seconds=1):
        raise UsageError(f"--every {every} is less than a second", remedy="Write 1m.")
    settings = choice.settings()
    order = settings.policy.order
    deployment = settings.deployment(model, environment or order[max(0, len(order) - 2)])
    policy = settings.policy.for_model(model)
    rules = policy.environments[deployment.environment].soak
    if rules is None:
        others = ", ".join(name for name in order if policy.environments[name].soak)
        raise UsageError(
            f"{deployment.environment} has no soak in the policy",
            remedy=f"Name an environment that has one with -e: {others}."
            if others
            else f"Give it one: environments.{deployment.environment}.soak.",
        )
    if (how := observed_by(policy, rules)) != "samples":
        raise UsageError(
            f"the soak of {deployment} is observed by {how}: it takes no samples",
            remedy="soak.observed_by in the policy changes it. It is shown by: "
            + next_command("vllm-rollout", "status", model),
        )
    clock = SystemClock()
    shown: object = None
    while True:
        try:
            state = _take_sample(settings, deployment)
            text = soak_text(state)
        except RolloutError as error:
            if once:
                raise
            state, text = None, f"not observed, which does not count: {error}"
        seen = (state.since, int(state.soaked.total_seconds())) if state else "not observed"
        if once or seen != shown:
            options.say(f"{clock.now():%H:%M:%S}  {deployment}: {text}")
            shown = seen
        if once or (state is not None and state.over):
            return
        clock.sleep(pause)


def _take_sample(settings: Settings, deployment: Deployment) -> SoakState:
    """Take one sample and keep it; return the soak then."""
    platform, policy = settings.reader(), settings.policy.for_model(deployment.model)
    revision = _serving(settings, deployment)
    with settings.client(platform.base_url(deployment), deployment) as client:
        seconds = policy.watch.probe_timeout_seconds
        before = platform.path_errors(deployment)
        probes = probe(client, count=1, timeout_seconds=seconds)
        problem = platform.path_errors(deployment).since(before)
    if problem and probes.unless(problem).path_errors:
        raise problem
    if probes.health_refused or (probes.refused and not probes.total):
        raise RolloutError(f"nothing was seen of {deployment}: {probes.refused_because}")
    if not probes.total:
        raise RolloutError(
            f"the answer of {deployment} came from a cache ({probes.cached_by})",
            remedy="Ask the servers past the cache: see `service_url`.",
        )
    now = SystemClock().now()
    sample = sample_of(now, platform.replicas(deployment), revision.capacity, probes)
    rules = policy.environments[deployment.environment].soak
    if rules is not None:
        keep_sample(writer_of(platform).store, deployment, revision, sample, rules)
    state = soak_of(platform, policy, deployment, revision, now)
    if state is None:
        raise UsageError(f"{deployment.environment} has no soak in the policy")
    return state


def _serving(settings: Settings, deployment: Deployment) -> Revision:
    revision = newest_served(settings.reader().history(deployment))
    if revision is None:
        raise UsageError(f"{deployment} is not deployed", remedy="There is nothing to look at.")
    return revision
