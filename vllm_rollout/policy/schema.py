"""JSON Schema of a rollout.yaml, generated from the models.

`python -m vllm_rollout.policy.schema` writes the file that ships with the package. The schema is
for editors: everything is optional there, since a rollout.yaml says only what differs. The rules
about several keys are the models' own.
"""

import ast
import inspect
import json
from collections.abc import Iterator
from itertools import pairwise
from textwrap import dedent
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from vllm_rollout.policy.fields import Block
from vllm_rollout.policy.models import Policy
from vllm_rollout.policy.outputs import Sample
from vllm_rollout.policy.platforms import StartupThreshold
from vllm_rollout.policy.ramp import RampStep
from vllm_rollout.policy.windows import Freeze
from vllm_rollout.resources import POLICY_SCHEMA

# A list is replaced whole, so a block that only lists hold keeps the keys it cannot do without.
_WHOLE = {block.__name__ for block in (Freeze, RampStep, Sample, StartupThreshold)}


class _Generator(GenerateJsonSchema):
    """Without what only Python sees: generated titles, defaults, None."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's signature
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def policy_schema() -> dict[str, Any]:
    """The schema as JSON data."""
    generated = Policy.model_json_schema(by_alias=True, schema_generator=_Generator)
    definitions = generated["$defs"]
    for name, block in blocks_by_name().items():
        known = generated if block is Policy else definitions.get(name, {})
        for key, text in _described(block).items():
            if key in known.get("properties", {}):
                described = {"description": text, **known["properties"][key]}
                known["properties"][key] = dict(sorted(described.items()))
    for name, definition in definitions.items():
        del definition["title"]
        if name not in _WHOLE:
            definition.pop("required", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "rollout.yaml",
        "description": "What a rollout.yaml of vllm-rollout may override.",
        "type": "object",
        "additionalProperties": False,
        "properties": generated["properties"],
        "$defs": definitions,
    }


def blocks_by_name() -> dict[str, type[Block]]:
    """Every block of a policy by its name in the schema."""
    return {block.__name__: block for block in _blocks(Block)}


def _blocks(block: type[Block]) -> Iterator[type[Block]]:
    for each in block.__subclasses__():
        yield each
        yield from _blocks(each)


def _described(block: type[Block]) -> dict[str, str]:
    """The text below each field, own or inherited, by the field's key in YAML."""
    found: dict[str, str] = {}
    for each in reversed(block.__mro__[: block.__mro__.index(Block)]):
        for name, text in attribute_texts(each).items():
            if name in block.model_fields:
                found[block.model_fields[name].alias or name] = text
    return found


def attribute_texts(owner: type) -> dict[str, str]:
    """The text below each attribute of a class, as its source has it.

    Pydantic can collect these (`use_attribute_docstrings`), but would read every module's source
    each time that a command starts.
    """
    found: dict[str, str] = {}
    (tree,) = ast.parse(dedent(inspect.getsource(owner))).body
    for attribute, text in pairwise(tree.body):  # type: ignore[attr-defined]
        match attribute, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]),
                ast.Expr(value=ast.Constant(value=str(description))),
            ):
                found[name] = inspect.cleandoc(description)
    return found


def schema_text() -> str:
    """The shipped file's content."""
    return json.dumps(policy_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    POLICY_SCHEMA.write_text(schema_text(), encoding="utf-8")
