"""Sample outputs by rule."""

import pytest

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.sample_outputs import output_verdict
from vllm_rollout.policy.outputs import Sample


@pytest.mark.parametrize(
    ("rules", "good", "bad"),
    [
        ({}, "The sea is blue.", "  \n"),
        ({"contains": "Paris"}, "It is Paris.", "It is Rome."),
        ({"matches": r"^\s*\d+"}, " 42 of them", "many of them"),
        ({"is_json": True}, '{"a": 1}', '{"a": 1'),
    ],
)
def test_an_answer_must_keep_every_rule(rules: dict[str, object], good: str, bad: str) -> None:
    sample = Sample.model_validate({"prompt": "Say it", **rules})
    assert output_verdict(sample, good).outcome is Outcome.PASS
    verdict = output_verdict(sample, bad)
    assert verdict.outcome is Outcome.FAIL
    assert "'Say it'" in verdict.reason
