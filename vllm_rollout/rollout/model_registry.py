"""Registers deployments in the team's model registry and queries it, by the team's commands."""

from collections.abc import Sequence

from vllm_rollout.model.deployment import Deployment, Revision, newest_served
from vllm_rollout.model.errors import ExitCode, RolloutError
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.policy import Policy
from vllm_rollout.rollout.run import Run, RunLog
from vllm_rollout.rollout.user_command import UserCommandError, run_user_command

_LONGEST_ANSWER = 300


class RegistryError(RolloutError):
    """The registry's command could not be run, did not end, or ended with an error."""

    exit_code = ExitCode.UNREACHABLE


def register(
    policy: Policy, platform: ReleaseReader, deployment: Deployment, revision: Revision
) -> str | None:
    """Register `revision`; return the last line that the command printed, None without a command.

    Raises:
        RegistryError: it is not known to be registered.
    """
    return _run(policy.model_registry.register_command, policy, platform, deployment, revision)


def register_target(run: Run, platform: ReleaseReader, log: RunLog) -> str:
    """Register what the run's target serves; return what went wrong, or ""."""
    target = run.target
    try:
        served = newest_served(platform.history(target))
        if served is None:
            return f"{target} serves nothing that could be registered"
        printed = register(run.policy, platform, target, served)
    except RolloutError as error:
        return f"not registered: {error}"
    if printed is not None:
        log.log_step(f"registered {target}", printed)
    return ""


def registered(
    policy: Policy, platform: ReleaseReader, deployment: Deployment, revision: Revision
) -> str | None:
    """Return the registry's answer about the deployment; None without a command.

    Raises:
        RegistryError: it cannot be queried.
    """
    return _run(policy.model_registry.status_command, policy, platform, deployment, revision)


def _run(
    command: Sequence[str] | None,
    policy: Policy,
    platform: ReleaseReader,
    deployment: Deployment,
    revision: Revision,
) -> str | None:
    if command is None:
        return None
    filled = {
        "model": deployment.model,
        "environment": deployment.environment,
        "namespace": deployment.namespace,
        "url": platform.route(deployment).url,
        "revision": revision.number,
        "build": revision.build.digest,
    }
    words = [word.format_map(filled) for word in command]
    try:
        status, text = run_user_command(
            words, timeout_seconds=policy.model_registry.timeout.total_seconds()
        )
    except UserCommandError as error:
        raise RegistryError(
            f"the model registry's command {error}",
            remedy="Correct `model_registry` in the policy (perhaps its timeout), or try again.",
        ) from error
    last = text.splitlines()[-1][:_LONGEST_ANSWER] if text else ""
    if status != 0:
        raise RegistryError(
            f"the model registry's command {words[0]!r} ended with {status}: {last}",
            remedy="Fix the error it printed; a deployment that no router knows serves nobody.",
        )
    return last
