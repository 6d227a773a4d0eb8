"""What requests ask: a seeded mix, whatever the workers."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from vllm_rollout.load.workload import NUMBER_DIGITS, Template, Workload
from vllm_rollout.model.load_plan import Lengths, LoadPlan, RequestClass, TraceEntry

FEW = Lengths(median=16, p95=16, longest=16)
SPREAD = Lengths(median=100, p95=400, longest=500)
PLAN = LoadPlan(base_url="http://h", model="m", rate_per_second=10, duration_seconds=10)


def mix(*classes: RequestClass, seed: int = 1) -> LoadPlan:
    return replace(PLAN, classes=classes, seed=seed)


def made(name: str, kind: str, **changes: Any) -> RequestClass:
    fields = {"prompt_tokens": SPREAD, "output": FEW, **changes}
    return RequestClass(name=name, kind=kind, **fields)


def body(template: Template, number: int = 7) -> dict[str, Any]:
    digits = b"%0*d" % (NUMBER_DIGITS, number) if template.numbered else b""
    content = template.before + digits + template.after
    assert len(content) == template.length
    parsed: dict[str, Any] = json.loads(content)
    return parsed


def test_one_prompt_differs_by_run_and_number_alone() -> None:
    workload = Workload(replace(PLAN, prompt='Say "######### {x}"', max_tokens=9, stream=False))
    (template,) = workload.templates
    assert (template.path, template.request_class) == ("/v1/completions", "")
    assert workload.pick(0) == workload.pick(10**6) == 0
    plain = Workload(replace(PLAN, prompt="Say 'hi'", nonce="c0ffee"))
    assert body(plain.templates[0])["prompt"] == "c0ffee 000000007 Say 'hi'"
    assert body(plain.templates[0])["stream_options"] == {"include_usage": True}
    (chat,) = Workload(replace(PLAN, prompt="Hi", api="chat")).templates
    assert chat.path == "/v1/chat/completions"
    assert body(chat)["messages"] == [{"role": "user", "content": "000000007 Hi"}]


def test_classes_have_their_share_and_the_seed_decides() -> None:
    plan = mix(made("short", "words", weight=3), made("chat", "multi_turn", api="chat", turns=2))
    workload = Workload(plan)
    drawn = Counter(workload.templates[workload.pick(n)].request_class for n in range(20_000))
    assert drawn["short"] / 20_000 == pytest.approx(0.75, abs=0.02)
    again = Workload(plan)
    assert again.templates == workload.templates
    assert [again.pick(n) for n in range(50)] == [workload.pick(n) for n in range(50)]
    assert Workload(replace(plan, seed=2)).templates != workload.templates


def test_prompts_of_words_are_as_long_as_asked_and_each_its_own() -> None:
    templates = Workload(mix(made("long", "words", output=SPREAD))).templates
    lengths = sorted(len(body(each)["prompt"].split()) for each in templates)
    assert lengths[len(lengths) // 2] == pytest.approx(100, rel=0.2)
    assert lengths[-1] == 501
    assert lengths[int(0.95 * len(lengths))] == pytest.approx(400, rel=0.25)
    asked = sorted(body(each)["max_tokens"] for each in templates)
    assert asked[len(asked) // 2] == pytest.approx(100, rel=0.2)
    first = templates[0]
    assert body(first, 1)["prompt"].split()[0] != body(first, 2)["prompt"].split()[0]


def test_shared_prefixes_are_shared_and_the_rest_is_not() -> None:
    fixed = Lengths(median=40, p95=40, longest=40)
    templates = Workload(mix(made("rag", "shared_prefix", prompt_tokens=fixed))).templates
    prompts = [body(each)["prompt"].split() for each in templates]
    assert len({tuple(words[:30]) for words in prompts}) == 1
    assert len({tuple(words[30:]) for words in prompts}) > 1000
    assert all(len(words) == 41 for words in prompts)


def test_each_turn_of_a_conversation_holds_the_ones_before() -> None:
    chat = made("chat", "multi_turn", api="chat", turns=3)
    conversations = [body(each)["messages"] for each in Workload(mix(chat)).templates]
    assert {len(messages) for messages in conversations} == {1, 3, 5}
    assert all(messages[-1]["role"] == "user" for messages in conversations)
    known = {json.dumps(messages) for messages in conversations}
    deep = [messages for messages in conversations if len(messages) == 5]
    # All turns of a conversation are in the pool, but perhaps those of the last one.
    assert sum(json.dumps(m[:3]) in known for m in deep) == len(deep)


def test_prompts_of_a_file_are_asked_as_they_are() -> None:
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    given = RequestClass(name="own", kind="file", prompts=("Hello", messages), output=FEW)
    texts = Counter(body(each)["prompt"] for each in Workload(mix(given)).templates)
    assert texts == {"Hello": 512, "system: Be brief.\nuser: Hi": 512}
    template = Workload(replace(mix(given), nonce="c0ffee")).templates[0]
    assert [body(template, n)["user"] for n in (1, 2)] == [
        "vllm-rollout-c0ffee-000000001",
        "vllm-rollout-c0ffee-000000002",
    ]
    chat = replace(given, api="chat")
    (path,) = {each.path for each in Workload(mix(chat)).templates}
    assert path == "/v1/chat/completions"


def test_a_trace_is_replayed_with_its_lengths() -> None:
    trace = (
        TraceEntry(at=0, prompt_tokens=3, output_tokens=5),
        TraceEntry(at=1, prompt_tokens=5000, output_tokens=1),
    )
    workload = Workload(replace(PLAN, trace=trace))
    first, second = (body(workload.replayed(number), number) for number in (0, 1))
    assert (len(first["prompt"].split()), first["max_tokens"], first["ignore_eos"]) == (4, 5, True)
    assert len(second["prompt"].split()) == 5001
