"""Sample outputs by rule."""

import pytest

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.sample_outputs import answer_verdict, degenerate, doubts_of, output_verdict
from vllm_rollout.model.observation import ProbeSample
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
    assert output_verdict(sample, good, completion_tokens=8).outcome is Outcome.PASS
    verdict = output_verdict(sample, bad, completion_tokens=8)
    assert verdict.outcome is Outcome.FAIL
    assert "'Say it'" in verdict.reason


NONSENSE = [
    "!!!!",
    "!!!!!!!!!!",
    "! ! ! ! !",
    "\ufffd",
    "\ufffd" * 8,
    "\ufffdA\ufffd\ufffd\ufffd\ufffd",
    "<unk><unk>",
    "<|endoftext|>",
    "</s> </s>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "",
    " \n\n",
    "the the the the the th",
    "thethethethethe",
    "\u7684" * 6,
    "\x00" * 8,
    "Sure, I can" + "!" * 60,
    "Hello!!!!!!!!!",
    " I am I am I am I am I am",
    " a b a b a b a b a b",
    "a b a b a b a b",
    "It is, it is, it is, it is, it",
    " of the of the of the of the of the of the",
    "\u6211\u4eec" * 8,
    "<extra_id_0><extra_id_1>",
    "<0x0A><0x0A>",
    "<tool_call><tool_call>",
    "</tool_call>",
    "<reserved_special_token_12>",
    "<SPECIAL_12><begin_of_text>",
    "<unused12> [unused3] <s>",
    "[BOS] [EOS]",
    "\ufffd\ufffd\ufffd",
]
SENSE = [
    "Hi",
    "4",
    "!!!",
    "\u2014",
    " Paris.",
    " Paris\nQuestion: What is the capital of Germany?\nAnswer: Berlin",
    "\n\nThe sea is blue. The sea is blue. The sea",  # greedy base models go round
    "1000000",
    "3.3333333333",
    "ha ha ha",
    "- - -",
    "Wow!!!!",
    "=====\nTitle\n=====",
    "| a | b |\n|---|---|",
    "________ is the capital",
    "\u4f60\u597d",
    "Hello \U0001f44b\ufffd\ufffd",  # cut in the middle of a character
    "<think>\nThe user says hello",
    "JJwor\ufffd\ufffdou\ufffd)",  # recorded: a random model of two layers
    # Lists, refrains, code, tables and answers of two words that repeat by right:
    "yes yes",
    "no, no, no",
    "1, 2, 1, 2",
    "0 1 0 1",
    "Row, row, row your boat\nGently down the stream\nMerrily, merrily, merrily, merrily",
    "Bah, bah, black sheep, have you any wool? Yes sir, yes sir, three bags full",
    "La la la, la la la, hey! La la la",
    "tick tock tick tock",
    "knock knock. Who is there?",
    "- [ ] a\n- [ ] b\n- [ ] c\n- [ ] d",
    "1. Paris\n2. Rome\n3. Bern\n4. Oslo",
    "| 0 | 0 | 0 |\n| 0 | 0 | 1 |",
    "[[0, 0, 0], [0, 1, 0], [0, 0, 0]]",
    "| --- | --- | --- | --- |\n| a | b | c | d |",
    "if x:\n    pass\nelse:\n    pass",
    "for i in range(3):\n    for j in range(3):\n        print(i, j)",
    "<div><p>One</p><p>Two</p></div>",
    '<tool_call>{"name": "f", "arguments": {}}</tool_call>',
    "std::vector<int> a; std::vector<int> b;",
    "Section one\n-----------",
    "# ---------------",
    "Contents ........ 12",
    "Name: ________",
    "Wait...... what?",
    "So excited!!!!!!",
    "\u54c8\u54c8\u54c8\u54c8",
    "0xFFFFFFFFFFFF",
    "x = 1 + 1 + 1 + 1",
    "very very very good",
    "\ufffd\ufffd\x0b\ufffd\ufffd\x13\ufffd\ufffd\ufffdvll\ufffd\ufffd\x0c\ufffdworld",
]


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_inconclusive_with_a_reason_and_a_remedy(text: str) -> None:
    verdict = answer_verdict(text, completion_tokens=8)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.reason.startswith(("the answer ", "most of the answer "))
    assert "quantization" in verdict.remedy


@pytest.mark.parametrize("text", SENSE)
def test_sense_is_left_alone(text: str) -> None:
    assert degenerate(text, completion_tokens=8) == ""


def test_one_token_that_is_half_a_character_is_no_nonsense() -> None:
    assert degenerate("\ufffd", completion_tokens=1) == ""
    assert degenerate("\ufffd\ufffd\ufffd", completion_tokens=3)


def test_a_rule_that_is_broken_is_a_fail_even_of_nonsense() -> None:
    sample = Sample.model_validate({"prompt": "Say it", "contains": "Paris"})
    for text, outcome in (("!!!!", Outcome.FAIL), ("Paris" + "!" * 40, Outcome.INCONCLUSIVE)):
        assert output_verdict(sample, text, completion_tokens=8).outcome is outcome


def test_a_watch_counts_what_is_doubtful_in_its_probes() -> None:
    sample = ProbeSample(
        total=3,
        failures=1,
        latencies_seconds=(0.1, 0.1),
        healthy=True,
        cached=2,
        cached_by="x-cache: HIT",
        answers=(("!!!!!", 5), (" I am", 5)),
    )
    assert doubts_of(sample) == {
        "cached": "2 of 5 answers from a cache (x-cache: HIT)",
        "degenerate": "1 of 2 answers degenerate: the answer repeats '!' and says nothing else: "
        "'!!!!!'",
    }
    good = ProbeSample(total=1, failures=0, latencies_seconds=(0.1,), healthy=True)
    assert doubts_of(good) == {}
