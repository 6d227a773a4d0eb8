"""Errors in a policy, with their place: from pydantic's errors to lines that teach."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vllm_rollout.model.errors import PolicyError
from vllm_rollout.policy.fields import BROKEN_RULE
from vllm_rollout.policy.yaml_nodes import Node, Place, descend, dotted

_LONGEST_VALUE = 60
_KINDS = {
    "model_type": "must be a block of keys",
    "dict_type": "must be a block of keys",
    "tuple_type": "must be a list",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "finite_number": "must be a finite number",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be {le:g} or less",
    "literal_error": "must be {expected}",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, under a dotted key, at a place."""

    place: Place
    key: str
    text: str

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        return f"{self.place}: {key}{self.text}"


def refusal(problems: Iterable[Problem]) -> PolicyError:
    """The error to raise for these problems.

    Its message has one line per problem, `file:line:column: dotted.key: what is wrong`, in the
    order of the files; a problem that several environments inherit is named once.
    """
    found = sorted(
        dict.fromkeys(problems), key=lambda p: (p.place.rank, p.place.line, p.place.column, p.key)
    )
    return PolicyError(
        "\n".join(map(str, found)),
        remedy="Correct the places named; `vllm-rollout policy show` prints every key there is "
        "with its value.",
    )


def problems_of(error: ValidationError, root: Node, model: type[BaseModel]) -> list[Problem]:
    """Return what `error`, raised when `model` was made of `root`, means to the policy's author."""
    return [
        _problem(details, root, model)
        for details in error.errors(include_url=False)
        # A list whose items are wrong also counts as too short: the items say what is wrong.
        if not (details["type"] == "too_short" and details["input"])
    ]


def _problem(details: ErrorDetails, root: Node, model: type[BaseModel]) -> Problem:
    steps, about_key = details["loc"], details["loc"][-1:] == ("[key]",)
    node, missing = descend(root, steps[:-1] if about_key else steps)
    if about_key:
        return Problem(node.key_place, node.key, details["msg"])
    key = node.key
    for step in missing:
        key = dotted(key, step)
    kind, context = details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return Problem(node.key_place, key, _unknown(str(steps[-1]), _keys_at(model, steps[:-1])))
    if kind == "missing":
        return Problem(node.key_place, key, "is missing")
    if kind == BROKEN_RULE:
        # Of the keys that disagree, the one that was written last is the one to look at.
        keyed = [descend(node, tuple(name.split(".")))[0] for name in context["keys"]]
        latest = max(keyed, key=lambda found: found.place.rank, default=node)
        return Problem(latest.place, latest.key, context["text"])
    if kind == "value_error":
        return Problem(node.place, key, str(context["error"]))
    text = _KINDS[kind].format(**context) if kind in _KINDS else details["msg"]
    if kind not in {"string_too_short", "too_short"}:
        text += f", not {_shown(details['input'])}"
    if kind == "literal_error" and isinstance(details["input"], str):
        names = [name.strip("'") for name in context["expected"].replace(" or ", ", ").split(", ")]
        text += did_you_mean(details["input"], names)
    return Problem(node.place, key, text)


def _unknown(name: str, valid: list[str]) -> str:
    return f"unknown key {name!r}{did_you_mean(name, valid)} (valid here: {', '.join(valid)})"


def did_you_mean(name: str, valid: Sequence[str]) -> str:
    """`; did you mean 'x'?` with the nearest valid name, or ""."""
    near = get_close_matches(name, valid, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _shown(value: Any) -> str:
    """A value as its file shows it, cut short."""
    if isinstance(value, dict):
        return "a block of keys"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def _keys_at(model: type[BaseModel], steps: tuple[str | int, ...]) -> list[str]:
    """The keys that the block at `steps` may hold, as they are written."""
    at: Any = model
    for step in steps:
        if isinstance(step, int):
            at = get_args(at)[0]
        elif get_origin(at) is dict:
            at = get_args(at)[1]
        else:
            at = _types_by_key(at)[step]
    return list(_types_by_key(at))


def _types_by_key(model: type[BaseModel]) -> dict[str, Any]:
    """Return the type of each key of a block, without `| None` and annotations."""
    types = {info.alias or name: info.annotation for name, info in model.model_fields.items()}
    return {key: _bare(of) for key, of in types.items()}


def _bare(kind: Any) -> Any:
    while get_origin(kind) in (UnionType, Union, Annotated):
        kind = get_args(kind)[0]
    return kind
