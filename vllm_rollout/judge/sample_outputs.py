"""Rules for sample outputs. What no rule can decide is for QA to read."""

import json
import re

from vllm_rollout.model.verdict import Verdict, check
from vllm_rollout.policy.outputs import Sample


def output_verdict(sample: Sample, text: str) -> Verdict:
    """Pass if `text` is no empty answer and keeps every rule of `sample`; else fail."""
    wrong = []
    if not text.strip():
        wrong.append("the answer is empty")
    if sample.contains is not None and sample.contains not in text:
        wrong.append(f"it does not contain {sample.contains!r}")
    if sample.matches is not None and re.search(sample.matches, text) is None:
        wrong.append(f"nothing in it matches {sample.matches!r}")
    if sample.is_json and not _is_json(text):
        wrong.append("it is not JSON")
    ruled = any((sample.contains, sample.matches, sample.is_json))
    kept = "keeps the policy's rules" if ruled else "was answered; QA reads what"
    return check(
        not wrong,
        f"{sample.prompt!r} {'; '.join(wrong) or kept}",
        remedy="Compare the answer with the model's that serves now; the prompt and its rules are "
        "`gates.outputs.samples`.",
    )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
