"""Loads a policy: the defaults, a rollout.yaml over them, options over both."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vllm_rollout.model.errors import PolicyError
from vllm_rollout.policy.inheritance import expand
from vllm_rollout.policy.models import Policy
from vllm_rollout.policy.validation_errors import Problem, problems_of, refusal
from vllm_rollout.policy.yaml_loader import read_yaml
from vllm_rollout.policy.yaml_nodes import Node, Place, merge, plain
from vllm_rollout.resources import DEFAULT_POLICY
from vllm_rollout.yaml_file import LARGEST_BYTES

DEFAULT_FILE = Path("rollout.yaml")
_FILE_RANK = 1
_OPTION_RANK = 2


@dataclass(frozen=True, slots=True)
class Override:
    """A value for one dotted key, and the option or environment variable that gave it."""

    value: Any
    source: str


def load_policy(path: Path | None = None, *, overrides: Mapping[str, Any] | None = None) -> Policy:
    """The policy in force: `overrides` over the file over the defaults.

    Args:
        path: a rollout.yaml; None takes `./rollout.yaml` when it is there. An empty file is
            the defaults.
        overrides: values by dotted key (`environments.staging.gates.latency.limit`): JSON data,
            or text, which is read as YAML as a file's value would be. An `Override` says which
            option it came from; any other value is reported as `--set`.

    Raises:
        PolicyError: the file cannot be read, or anything in it or in an override is wrong; the
            message has one line per problem, `file:line:column: dotted.key: what is wrong`.
    """
    # A link to nowhere counts as there: it must not silently mean the defaults.
    if path is None and os.path.lexists(DEFAULT_FILE):
        path = DEFAULT_FILE
    defaults, problems = _read(DEFAULT_POLICY, rank=0, name=DEFAULT_POLICY.name)
    layers = [defaults]
    if path is not None:
        layer, wrong = _read(path, rank=_FILE_RANK, name=str(path))
        layers.append(layer)
        problems += wrong
    for key, value in (overrides or {}).items():
        layer, wrong = _option(key, value)
        layers.append(layer)
        problems += wrong
    root = reduce(merge, layers)
    if root is None:
        raise PolicyError(f"{DEFAULT_POLICY} is empty", remedy="Install the package again.")
    return _validated(root, problems)


def _validated(root: Node, problems: list[Problem]) -> Policy:
    expanded, disagreements = expand(root)
    problems = problems + disagreements
    try:
        policy = Policy.model_validate(plain(expanded))
    except ValidationError as error:
        raise refusal(problems + problems_of(error, expanded, Policy)) from None
    if problems:
        raise refusal(problems)
    return policy


def _read(path: Path, *, rank: int, name: str) -> tuple[Node | None, list[Problem]]:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise PolicyError(
            f"{name}: there is no such policy file",
            remedy="Give the path of a rollout.yaml, or leave it out to use the defaults.",
        ) from None
    except OSError as error:
        raise PolicyError(
            f"{name}: cannot be read: {error.strerror}",
            remedy="Give the path of a readable rollout.yaml.",
        ) from None
    start = Place(name, 1, 1, rank)
    if len(data) > LARGEST_BYTES:
        raise refusal([Problem(start, "", f"is larger than {LARGEST_BYTES:,} bytes")])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        place = Place(name, line, column, rank)
        raise refusal([Problem(place, "", "is not UTF-8 text")]) from None
    node, problems = read_yaml(text, start)
    if node is not None and not isinstance(node.value, dict):
        problems.append(
            Problem(node.place, "", "must be a block of keys, like `namespace: system`")
        )
        node = None
    return node, problems


def _option(key: str, value: Any) -> tuple[Node | None, list[Problem]]:
    """The tree of one override: its value, inside a mapping for each part of the key."""
    given = value if isinstance(value, Override) else Override(value, "--set")
    place = Place(given.source, rank=_OPTION_RANK)
    steps = key.split(".")
    if not all(steps):
        return None, [Problem(place, key, "is not a dotted key")]
    text = given.value if isinstance(given.value, str) else json.dumps(given.value)
    node, problems = read_yaml(text, place, key=key)
    if node is None and not problems:
        problems = [Problem(place, key, "has no value")]
    for at in range(len(steps) - 1, -1, -1):
        if node is None:
            break
        node = Node({steps[at]: node}, place, place, ".".join(steps[:at]))
    return node, problems
