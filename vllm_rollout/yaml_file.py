"""A YAML file that holds a mapping: values of a build, a chart's about."""

from pathlib import Path
from typing import Any

import yaml

from vllm_rollout.model.errors import UsageError


def read_mapping(path: Path, *, remedy: str = "") -> dict[str, Any]:
    """The YAML mapping in `path`; an empty file is an empty mapping.

    Raises:
        UsageError: missing, unreadable, not YAML, or not a mapping.
    """
    try:
        value = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", remedy=remedy) from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {error}", remedy=remedy) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{path} is not a mapping of keys to values", remedy=remedy)
    return value
