"""The pre-deployment checks of a build, run as gates are: in a process of their own."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.evidence import GateRun
from vllm_rollout.platform.base import Platform
from vllm_rollout.policy import Policy
from vllm_rollout.rollout.gate_runner import GateRunner

_GATE = "preflight"


def run_preflight(
    runner: GateRunner,
    platform: Platform,
    policy: Policy,
    deployment: Deployment,
    values: Mapping[str, Any],
    folder: Path,
) -> GateRun | None:
    """Check what the build of `values` needs in `deployment`; the run is about that build.

    None where the policy asks for no check, or the platform has nothing to look at beforehand.

    Raises:
        UsageError: the values serve another model.
        GatesCrashedError: pytest ended without usable evidence.
    """
    environment = policy.environments[deployment.environment]
    if not (environment.preflight and environment.preflight.enabled):
        return None
    if platform.preflight(deployment, values, capacity=environment.replicas) is None:
        return None
    build = platform.build(deployment, dict(values))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))
    run = runner.run(deployment, folder, only=(_GATE,), options=("--values", str(file)))
    expected = tuple(f"{_GATE}-{check}" for check in environment.preflight.enabled)
    return replace(run, expected=expected, build=build, revision=None)
