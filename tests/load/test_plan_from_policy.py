"""What the policy says of a load is what is sent."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_rollout.load.plan_from_policy import load_plan
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.load_plan import Lengths, LoadPlan, RateSegment
from vllm_rollout.policy import load_policy

STAGING = Deployment("llama-2-7b", "staging")

Plan = Callable[..., LoadPlan]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The plan of staging's load with these changes, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def make(**changes: object) -> LoadPlan:
        overrides = {
            f"environments.staging.load.{key.replace('__', '.')}": value
            for key, value in changes.items()
        }
        policy = load_policy(overrides=overrides)
        return load_plan(policy, STAGING, base_url="http://127.0.0.1:8000")

    return make


def one_class(**fields: object) -> list[dict[str, object]]:
    return [{"name": "a", "max_tokens": {"median": 8}, **fields}]


def test_the_defaults_are_the_workflows_load(plan: Plan) -> None:
    made = plan()
    assert (made.rate_per_second, made.duration_seconds, made.warmup_seconds) == (10, 660, 10)
    assert (made.base_url, made.model) == ("http://127.0.0.1:8000", "llama-2-7b")
    assert (made.arrivals, made.stream, made.max_tokens) == ("poisson", True, 64)
    assert (made.shape, made.trace, made.classes) == ((), (), ())
    assert made.peak_rate_per_second == 10


def test_a_profile_is_in_place_of_rate_and_duration(plan: Plan) -> None:
    made = plan(
        traffic__profile=[{"rate": "2/s", "to": "20/s", "for": "5m"}, {"rate": "20/s", "for": "1m"}]
    )
    assert made.shape == (
        RateSegment(seconds=300, start=2, end=20),
        RateSegment(seconds=60, start=20, end=20),
    )
    assert made.duration_seconds == 360
    assert made.expected_requests == 300 * 11 + 60 * 20
    assert made.peak_rate_per_second == 20


def test_a_trace_is_replayed_from_its_first_request_to_its_last(plan: Plan, tmp_path: Path) -> None:
    entries = [(100, 7, 3), (102, 5, 2), (101, 9, 4)]
    (tmp_path / "trace.jsonl").write_text(
        "\n".join(
            json.dumps({"timestamp": at, "prompt_tokens": tokens, "output_tokens": out})
            for at, tokens, out in entries
        )
    )
    made = plan(traffic__replay={"file": "trace.jsonl", "speed": 2})
    assert [(e.at, e.prompt_tokens, e.output_tokens) for e in made.trace] == [
        (0, 7, 3),
        (0.5, 9, 4),
        (1, 5, 2),
    ]
    assert made.duration_seconds == pytest.approx(1, abs=0.01)
    assert made.duration_seconds > 1, "the last request is due within it"
    assert made.expected_requests == 3


def test_a_mix_has_its_classes_with_lengths_filled_in(plan: Plan) -> None:
    made = plan(
        traffic__workload=[
            {
                "name": "short",
                "weight": 3,
                "prompts": "words",
                "prompt_tokens": {"median": 100, "p95": 400},
                "max_tokens": {"median": 64},
            },
            {
                "name": "talk",
                "api": "chat",
                "stream": False,
                "prompts": "multi_turn",
                "turns": 5,
                "prompt_tokens": {"median": 900, "longest": 1000},
                "max_tokens": {"median": 10, "p95": 20, "longest": 30},
            },
        ]
    )
    short, talk = made.classes
    assert (short.name, short.weight, short.api, short.stream) == ("short", 3, "completions", True)
    assert short.prompt_tokens == Lengths(median=100, p95=400, longest=1600)
    assert short.output == Lengths(median=64, p95=64, longest=256)
    assert (talk.kind, talk.turns, talk.api, talk.stream) == ("multi_turn", 5, "chat", False)
    assert talk.prompt_tokens == Lengths(median=900, p95=900, longest=1000)
    assert talk.output == Lengths(median=10, p95=20, longest=30)


def test_prompts_of_a_file_are_texts_and_talks(plan: Plan, tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    lines = [json.dumps({"prompt": "Café?"}), "", json.dumps({"messages": talk, "id": 7})]
    (tmp_path / "ours.jsonl").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    made = plan(traffic__workload=one_class(prompts="file", file="ours.jsonl"))
    assert made.classes[0].prompts == ("Café?", tuple(talk))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds 0 prompts"),
        (b"\n\n", "holds 0 prompts"),
        (b"hello\n", "ours.jsonl:1 is no prompt"),
        (b'{"prompt": "a"}\n{"text": "b"}\n', "ours.jsonl:2 is no prompt"),
        (b'"a"\n', "ours.jsonl:1 is no prompt"),
        (b'{"prompt": ""}\n', "ours.jsonl:1"),
        (b'{"prompt": 7}\n', "ours.jsonl:1 holds no prompt"),
        (b'{"messages": []}\n', "ours.jsonl:1 holds no prompt"),
        (b'{"messages": [{"role": "user"}]}\n', "ours.jsonl:1 is no prompt"),
        (b'{"messages": [{"role": "user", "content": 7}]}\n', "ours.jsonl:1 is no prompt"),
        (b"\xff\xfe\n", "cannot be read"),
        (b'{"prompt": "a"}\n' * 10_001, "holds 10,001 prompts"),
    ],
)
def test_a_file_without_usable_prompts_is_refused_by_line(
    plan: Plan, tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "ours.jsonl").write_bytes(content)
    with pytest.raises(UsageError, match=said) as caught:
        plan(traffic__workload=one_class(prompts="file", file="ours.jsonl"))
    assert '{"prompt": "…"}' in caught.value.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"traffic__workload": one_class(prompts="file", file="nowhere.jsonl")},
        {"traffic__replay": {"file": "nowhere.csv"}},
    ],
)
def test_a_file_that_is_not_there_is_named(plan: Plan, changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        plan(**changes)
