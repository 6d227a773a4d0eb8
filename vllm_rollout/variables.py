"""Environment variables `VLLM_ROLLOUT_*`: each stands for the option of its name.

Every pytest run where the suite is installed imports this module: it stays light.
"""

import os
from collections.abc import Sequence
from pathlib import Path

ENVIRONMENT_PREFIX = "VLLM_ROLLOUT_"

LOAD_CA_FILE = "VLLM_ROLLOUT_LOAD_CA_FILE"
"""Names to a load generator the file with authorities that it trusts beside the others."""


def variable_of(option: str) -> str:
    """The variable that stands for an option: `base-url` is `VLLM_ROLLOUT_BASE_URL`."""
    return ENVIRONMENT_PREFIX + option.upper().replace("-", "_")


def option_or_environment(name: str, option: str | None) -> str | None:
    """The option, else its environment variable, else None. Empty counts as not given."""
    return option or os.environ.get(variable_of(name)) or None


def report_folder(option: str | None) -> Path:
    """Where reports go: `--report-dir`, its variable, or `reports`."""
    return Path(option_or_environment("report-dir", option) or "reports")


def secret_from(variable: str | None, file: str | None, what: str) -> str:
    """Return the secret that an environment variable or a file holds, read when it is needed.

    Raises:
        UsageError: neither has one; the message names them, and `what` is missing.
    """
    from vllm_rollout.model.errors import UsageError
    from vllm_rollout.model.text import own_secret

    if variable is not None:
        if value := os.environ.get(variable, "").strip():
            return own_secret(value)
        raise UsageError(f"{what} is missing: the environment variable {variable} is not set")
    try:
        if value := Path(file or "").read_text(encoding="utf-8").strip():
            return own_secret(value)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{what} cannot be read from {file}: {error}") from error
    raise UsageError(f"{what} is missing: {file} is empty")


def options_given(
    *,
    policy: str | None,
    platform: str | None,
    namespace: str | None,
    kube_context: str | None,
    changes: Sequence[str],
) -> list[tuple[str, str]]:
    """The options, and their values, by which another command makes the same choices.

    Choices by environment variables are among them: who reads the command may have none.
    """
    named = {
        "policy": policy,
        "platform": platform,
        "namespace": namespace,
        "kube-context": kube_context,
    }
    chosen = {name: option_or_environment(name, value) for name, value in named.items()}
    return [
        *((f"--{name}", value) for name, value in chosen.items() if value),
        *(("--set", change) for change in changes),
    ]
