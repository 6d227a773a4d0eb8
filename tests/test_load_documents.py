"""What docs/how-to/load.md shows can be used as it stands."""

import json
import re
from pathlib import Path

import pytest

from vllm_rollout.load.trace import read_trace
from vllm_rollout.policy import load_policy
from vllm_rollout.policy.load_profile import EarlyStop

TEXT = (Path(__file__).parents[1] / "docs" / "how-to" / "load.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_each_policy_is_one(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rollout.yaml"
    file.write_text(text, encoding="utf-8")
    changed = load_policy(file)
    assert len(changed.digest) > 0
    if "the default" not in text:
        assert changed.environments["staging"].load != load_policy().environments["staging"].load


def test_what_is_called_the_default_is() -> None:
    (text,) = (text for text in blocks("yaml") if "the default" in text)
    stop = load_policy().environments["staging"].load.early_stop
    assert isinstance(stop, EarlyStop)
    assert f"{{when: {stop.when}, risk: {stop.risk:.0%}, stall: {stop.stall_seconds:g}s}}" in text


def test_the_trace_and_the_prompts_can_be_read(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(blocks("csv")[0])
    assert [entry.output_tokens for entry in read_trace(trace)] == [5, 6]
    for line in blocks("json")[0].splitlines():
        assert json.loads(line).keys() <= {"prompt", "messages"}


def test_the_gate_is_python() -> None:
    for text in blocks("python"):
        compile(text, "load.md", "exec")
