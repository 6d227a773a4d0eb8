"""Builds put in place without command lines, pytest and load: what the product leaves behind.

The rollout to staging is the engine's own, of which only the gates' answers are the test's: so
releases, journal, decisions and evidence are those of a rollout whose gates passed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.local_release import until
from support.world import ScriptedGates, passed_before, scripted_tools

from vllm_rollout.model.deployment import Deployment, Revision, Target
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.evidence import Evidence, new_run_id
from vllm_rollout.platform.writer import ReleaseWriter
from vllm_rollout.policy import Policy
from vllm_rollout.rollout.engine import gate_and_promote
from vllm_rollout.rollout.run import Run, SystemClock
from vllm_rollout.settings import Settings


def deployed(
    platform: ReleaseWriter, policy: Policy, deployment: Deployment, values: Mapping[str, Any]
) -> Revision:
    """Bring all replicas of a deployment to the build of `values`, as `deploy` does."""
    capacity = policy.environments[deployment.environment].replicas
    target = Target(
        build=platform.build(deployment, values),
        values=values,
        replicas=capacity,
        capacity=capacity,
    )
    revision = platform.apply(
        deployment, target, description="seeded", timeout=policy.deploy_timeout
    )
    # Gates take seconds, in which pods are seen to be ready; answers that are the test's take none.
    until(lambda: all(r.ready for r in platform.replicas(deployment)), within_seconds=60)
    return revision


def passed(
    platform: ReleaseWriter, policy: Policy, deployment: Deployment, values: Mapping[str, Any]
) -> Revision:
    """The same, of a build that has passed its gates there."""
    revision = deployed(platform, policy, deployment, values)
    passed_before(platform.store, deployment, revision)
    return revision


def staged(settings: Settings, model: str, values: Mapping[str, Any], folder: Path) -> Evidence:
    """Bring the build of `values` to development, and from there to staging through passing gates.

    Nothing is written to `folder`: reports and records are the commands' work.
    """
    platform, policy = settings.reader(), settings.policy.for_model(model)
    source, target = (settings.deployment(model, name) for name in ("development", "staging"))
    deployed(platform, policy, source, values)
    clock = SystemClock()
    gates = ScriptedGates(platform, clock)
    gates.policy_digest = policy.digest
    run = Run(
        id=new_run_id(clock.now()),
        source=source,
        target=target,
        policy=policy,
        who="ada",
        reason="a test",
        folder=folder,
    )
    evidence = gate_and_promote(scripted_tools(run, settings, gates, clock=clock))
    assert evidence.exit_code == ExitCode.OK, evidence.conclusion
    return evidence
