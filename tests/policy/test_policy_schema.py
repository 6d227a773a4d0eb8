"""The shipped JSON Schema is the models', and describes what a rollout.yaml may hold."""

import re
from typing import Any

import jsonschema
import yaml

from vllm_rollout.policy.schema import policy_schema, schema_text
from vllm_rollout.resources import DEFAULT_POLICY, POLICY_SCHEMA


def test_the_shipped_schema_is_fresh() -> None:
    assert POLICY_SCHEMA.read_text(encoding="utf-8") == schema_text(), (
        "stale: run python -m vllm_rollout.policy.schema"
    )


def _blocks(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [schema, *schema["$defs"].values()]


def test_every_key_is_described_and_no_key_but_those_is_allowed() -> None:
    for block in _blocks(policy_schema()):
        assert block["description"]
        assert block["additionalProperties"] is False
        for name, field in block.get("properties", {}).items():
            assert field.get("description"), name


def test_only_what_stands_in_a_list_has_required_keys() -> None:
    definitions = policy_schema()["$defs"]
    required = {
        name: block["required"] for name, block in definitions.items() if "required" in block
    }
    assert required == {
        "Freeze": ["from", "to", "reason"],
        "RampStep": ["hold"],
        "Sample": ["prompt"],
        "StartupThreshold": ["up_to", "failure_threshold"],
    }


def test_the_patterns_accept_every_default() -> None:
    schema = policy_schema()

    def check(value: Any, part: dict[str, Any]) -> int:
        if "anyOf" in part:
            part = part["anyOf"][0] if isinstance(value, dict) else part["anyOf"][1]
        if "$ref" in part:
            part = schema["$defs"][part["$ref"].rpartition("/")[2]]
        if isinstance(value, dict):
            inner = part.get("properties", {})
            return sum(
                check(item, inner[key] if inner else part["additionalProperties"])
                for key, item in value.items()
            )
        if isinstance(value, list):
            return sum(check(item, part["items"]) for item in value)
        if "pattern" in part:
            assert re.search(part["pattern"], value), (value, part)
            return 1
        return 0

    written = yaml.safe_load(DEFAULT_POLICY.read_text(encoding="utf-8"))
    assert check(written, schema) > 30


def test_defaults_and_mistakes_are_told_apart_by_a_schema_validator() -> None:
    validator = jsonschema.Draft202012Validator(policy_schema())
    assert list(validator.iter_errors(yaml.safe_load(DEFAULT_POLICY.read_text("utf-8")))) == []
    for wrong in (
        {"confidnce": "95%"},
        {"environments": {"staging": {"gates": {"latency": {"limit": "-3s"}}}}},
        {"environments": {"staging": {"load": {"rate": 10}}}},
        {"ramp": [{"share": "100%"}]},
        {"ramp": "off"},
    ):
        assert list(validator.iter_errors(wrong)), wrong
