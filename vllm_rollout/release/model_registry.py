"""Tells the model registry of deployments that serve, and asks it, by the team's own commands."""

import os
import signal
import subprocess
from collections.abc import Sequence

from vllm_rollout.deployment import Deployment, Revision
from vllm_rollout.errors import ExitCode, RolloutError
from vllm_rollout.platform.base import Platform
from vllm_rollout.platform.redact import redact, secrets_in
from vllm_rollout.policy import Policy

_LONGEST_ANSWER = 300


class RegistryError(RolloutError):
    """The registry's command could not be run, did not end, or ended with an error."""

    exit_code = ExitCode.UNREACHABLE


def register(
    policy: Policy, platform: Platform, deployment: Deployment, revision: Revision
) -> str | None:
    """Register `revision`; the last line that the command printed, or None where there is none.

    Raises:
        RegistryError: it is not known to be registered.
    """
    return _run(policy.model_registry.register_command, policy, platform, deployment, revision)


def registered(
    policy: Policy, platform: Platform, deployment: Deployment, revision: Revision
) -> str | None:
    """What the registry says of the deployment; None where nobody is asked.

    Raises:
        RegistryError: it cannot be asked.
    """
    return _run(policy.model_registry.status_command, policy, platform, deployment, revision)


def _run(
    command: Sequence[str] | None,
    policy: Policy,
    platform: Platform,
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
    seconds = policy.model_registry.timeout.total_seconds()
    try:
        process = subprocess.Popen(  # noqa: S603 - an argv list, no shell
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise RegistryError(
            f"the model registry's command {words[0]!r} cannot be run: {error.strerror}",
            remedy="Install it, or correct `model_registry` in the policy.",
        ) from error
    with process:
        try:
            printed, _ = process.communicate(timeout=seconds)
        except BaseException as error:  # time is up, or Ctrl-C
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise RegistryError(
                f"the model registry's command {words[0]!r} did not end within {seconds:g} s",
                remedy="Try again, or raise `model_registry.timeout`.",
            ) from error
    text = redact(printed.decode(errors="replace"), secrets_in()).strip()
    last = text.splitlines()[-1][:_LONGEST_ANSWER] if text else ""
    if process.returncode != 0:
        raise RegistryError(
            f"the model registry's command {words[0]!r} ended with {process.returncode}: {last}",
            remedy="Correct what it says; a deployment that no router knows serves nobody.",
        )
    return last
