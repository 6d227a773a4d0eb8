"""Environment variables `VLLM_ROLLOUT_*`: each stands for the option of its name."""

import os

ENVIRONMENT_PREFIX = "VLLM_ROLLOUT_"


def variable_of(option: str) -> str:
    """The variable that stands for an option: `base-url` is `VLLM_ROLLOUT_BASE_URL`."""
    return ENVIRONMENT_PREFIX + option.upper().replace("-", "_")


def option_or_environment(name: str, option: str | None) -> str | None:
    """The option, else its environment variable, else None. Empty counts as not given."""
    return option or os.environ.get(variable_of(name)) or None
