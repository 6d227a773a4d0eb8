"""Recorded traces are read whole or refused by the line."""

from pathlib import Path

import pytest

from vllm_rollout.load.trace import read_trace
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.load_plan import TraceEntry

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:50.9805900,50,7
2023-11-16 18:15:46.6805900,374,44
"""
LINES = """{"timestamp": 1.5, "prompt_tokens": 374, "output_tokens": 44}

{"timestamp": "5.8", "prompt_tokens": "50", "output_tokens": 7}
"""


@pytest.mark.parametrize(("name", "text"), [("a.csv", AZURE), ("a.jsonl", LINES)])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_trace_begins_at_zero_and_is_in_order(
    tmp_path: Path, name: str, text: str, mark: str
) -> None:
    path = tmp_path / name
    path.write_text(mark + text, encoding="utf-8")
    first, second = read_trace(path)
    assert first == TraceEntry(at=0.0, prompt_tokens=374, output_tokens=44)
    assert (second.at, second.prompt_tokens) == (pytest.approx(4.3), 50)
    assert read_trace(path, speed=2)[1].at == pytest.approx(2.15)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "TIMESTAMP,ContextTokens\n1,2\n", "a.csv:2: there is no generatedtokens"),
        ("a.csv", AZURE + "yesterday,1,1\n", "a.csv:4: "),
        ("a.csv", AZURE + "1,0,1\n", "a.csv:4: '0' is no number of tokens"),
        ("a.csv", AZURE + "nan,1,1\n", "a.csv:4: 'nan' is no time"),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no request"),
        ("a.jsonl", LINES + "{", "a.jsonl:4: not JSON"),
        ("a.jsonl", "[1]", "a.jsonl:1: not a JSON object"),
        ("absent.csv", None, "No such file"),
    ],
)
def test_what_is_no_trace_is_refused_by_its_line(
    tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as caught:
        read_trace(tmp_path / name)
    assert said in str(caught.value)
