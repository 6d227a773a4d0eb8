"""A YAML file that holds a mapping: values of a build, a chart's about."""

from pathlib import Path
from typing import Any

import yaml

from vllm_rollout.model.errors import UsageError

LARGEST_BYTES = 1_000_000
MOST_NODES = 20_000
DEEPEST = 30


def read_mapping(path: Path, *, remedy: str = "") -> dict[str, Any]:
    """The YAML mapping in `path`; an empty file is an empty mapping.

    Raises:
        UsageError: missing, unreadable, too large, not YAML, or not a mapping.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_BYTES + 1)
        if len(text) > LARGEST_BYTES:
            raise UsageError(f"{path} has more than {LARGEST_BYTES:,} bytes", remedy=remedy)
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return {}
        if problem := _out_of_bounds(root):
            raise UsageError(f"{path} {problem}", remedy=remedy)
        value = loader.construct_document(root)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", remedy=remedy) from error
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{path} is not YAML: {error}", remedy=remedy) from error
    except RecursionError as error:
        raise UsageError(f"{path} is nested more than {DEEPEST} deep", remedy=remedy) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{path} is not a mapping of keys to values", remedy=remedy)
    return value


def _out_of_bounds(root: yaml.Node) -> str:
    """Return why it is not to be read: aliases make a small text endless; "" if it is."""
    left, seen = [(root, 0)], 0
    while left:
        node, depth = left.pop()
        seen += 1
        if seen > MOST_NODES:
            return f"holds more than {MOST_NODES:,} values"
        if depth > DEEPEST:
            return f"is nested more than {DEEPEST} deep"
        if isinstance(node, yaml.MappingNode):
            left += [(each, depth + 1) for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            left += [(each, depth + 1) for each in node.value]
    return ""
