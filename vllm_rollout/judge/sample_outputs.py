"""Rules for sample outputs. What no rule can decide is for QA to read."""

import json
import re

from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.model.units import counted, of_total
from vllm_rollout.model.verdict import Verdict, check
from vllm_rollout.policy.outputs import Sample

_SPECIAL = re.compile(
    r"<[|｜][^<>]{1,40}[|｜]>|</?s>|<(?:unk|pad|eos|bos|mask|(?:begin|start|end)_of_(?:text|turn)|"
    r"(?:(?:unused|reserved|extra_id|special)_?|(?:reserved_special|unused)_token_)\d+|0x[0-9A-F]{2}|"
    r"/?tool_(?:call|response))>|\[(?:UNK|PAD|CLS|SEP|MASK|BOS|EOS|/?INST|(?:unused|control_)\d+)\]|"
    r"</?think>",
    re.IGNORECASE,
)
"""Special tokens, as tokenizers of common models write them."""
_UNDECODABLE = "\N{REPLACEMENT CHARACTER}"
_CUT_CHARACTER = 3
"""Replacement characters at most that the first bytes of a cut character make."""
_MANY_WORDS, _MANY_MARKS, _MANY_PAIRS = 5, 4, 4
"""Repetitions that make a word, or what has no letter or digit, or two words, the only token of an
answer."""
_LONGEST_UNIT = 16
_TAIL = re.compile(r"(?:!{8,}|([^\w\s])\1{15,})\s*$")
"""Lines of other marks end headings and forms; "!" is the token 0 of many vocabularies."""


def degenerate(text: str, *, completion_tokens: int) -> str:
    """Return what shows that the engine computes nonsense; empty where nothing does.

    vLLM gives such answers with status 200 after NaN logits, a wrong quantization or a broken
    kernel. Whether an answer is good is not asked.
    """
    said = _SPECIAL.sub("", text)
    if not said.strip():
        if text.strip():
            return f"the answer is special tokens only: {_shown(text)}"
        return "the answer is empty" if not text else "the answer is white space only"
    # max_tokens may cut the last character: its bytes are then undecodable, and nothing is wrong.
    cut = re.sub(f"{_UNDECODABLE}{{1,{_CUT_CHARACTER}}}$", "", said)
    rest = cut if cut.strip() or completion_tokens < _CUT_CHARACTER else said
    broken = rest.count(_UNDECODABLE)
    if broken and 2 * broken > len(rest.replace(" ", "")):
        return f"most of the answer cannot be decoded: {_shown(text)}"
    if unit := _only_token(said.split()) or _only_pair(said.casefold().split()):
        return f"the answer repeats {unit!r} and says nothing else: {_shown(text)}"
    tail = _TAIL.search(said)
    if tail and 2 * len(tail[0]) > len(said):
        return f"the answer ends in one character for ever: {_shown(text)}"
    return ""


def _only_token(words: list[str]) -> str:
    """Return what the words repeat throughout, or empty; the last repetition may be cut."""
    first = words[0]
    if any(word != first for word in words[:-1]) or not first.startswith(words[-1]):
        return ""
    starts = (first[:n] for n in range(1, min(_LONGEST_UNIT, len(first)) + 1))
    unit = next((u for u in starts if (u * len(first)).startswith(first)), first)
    many = _MANY_WORDS if any(map(str.isalnum, unit)) else _MANY_MARKS
    return unit if sum(map(len, words)) >= many * len(unit) else ""


def _only_pair(words: list[str]) -> str:
    """Return the two words that are repeated throughout, or empty; the last word may be cut."""
    whole, last = words[:-1], words[-1]
    loops = whole[2:] == whole[:-2] and words[-3:][0].startswith(last)
    return " ".join(words[:2]) if loops and len(words) >= 2 * _MANY_PAIRS else ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def answer_verdict(text: str, *, completion_tokens: int) -> Verdict:
    """Inconclusive where the answer is degenerate; else a pass."""
    wrong = degenerate(text, completion_tokens=completion_tokens)
    return check(
        None if wrong else True,
        wrong or f"an answer of {counted(completion_tokens, 'token')}",
        remedy="Ask it by hand. If it is always so, the engine computes nonsense: compare "
        "quantization, dtype, attention backend and weights with the build that serves now.",
    )


def output_verdict(sample: Sample, text: str, *, completion_tokens: int) -> Verdict:
    """Fail if `text` is empty or breaks a rule of `sample`; inconclusive where it is degenerate."""
    wrong = []
    if not text.strip():
        wrong.append("the answer is empty")
    if sample.contains is not None and sample.contains not in text:
        wrong.append(f"it does not contain {sample.contains!r}")
    if sample.matches is not None and re.search(sample.matches, text) is None:
        wrong.append(f"nothing in it matches {sample.matches!r}")
    if sample.is_json and not _is_json(text):
        wrong.append("it is not JSON")
    judged = answer_verdict(text, completion_tokens=completion_tokens)
    if not (wrong or judged.passed):
        return judged.inconclusive_because(f"{sample.prompt!r}: {judged.reason}", judged.remedy)
    ruled = any((sample.contains, sample.matches, sample.is_json))
    kept = "keeps the policy's rules" if ruled else "answered, for QA to read"
    return check(
        not wrong,
        f"{sample.prompt!r}: {'; '.join(wrong) or kept}",
        remedy="Compare the answer with the model's that serves now; the prompt and its rules are "
        "`gates.outputs.samples`.",
    )


def doubts_of(probes: ProbeSample) -> dict[str, str]:
    """Return what makes a watch's probes doubtful though they were answered, by its kind."""
    bad = [
        wrong
        for text, tokens in probes.answers
        if (wrong := degenerate(text, completion_tokens=tokens))
    ]
    doubts = {}
    if probes.refused_because:
        doubts["refused"] = probes.refused_because
    if probes.cached:
        sent = probes.total + probes.cached
        doubts["cached"] = (
            f"{of_total(probes.cached, sent, 'answer')} from a cache ({probes.cached_by})"
        )
    elif probes.health_cached:
        doubts["cached"] = "/health was answered by a cache"
    if bad:
        doubts["degenerate"] = (
            f"{of_total(len(bad), len(probes.answers), 'answer')} degenerate: {bad[0]}"
        )
    return doubts


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
