"""Programs go by the fields of a verdict: its words may be any, and nothing but they changes."""

import ast
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm_rollout.capacity.headroom import with_headroom
from vllm_rollout.judge import Outcome, Verdict, VerdictMethod, check
from vllm_rollout.judge.alpha_spending import AlphaSpending, early_verdict
from vllm_rollout.judge.buckets import bucket_verdict
from vllm_rollout.judge.compare import compare_latency, compare_rate
from vllm_rollout.judge.generator import generator_verdict
from vllm_rollout.judge.goodput import GoodputLimits
from vllm_rollout.judge.ordered_verdicts import (
    goodput_verdict_in_order,
    percentile_verdict_in_order,
    rate_verdict_in_order,
)
from vllm_rollout.judge.response_time import every_sample_within
from vllm_rollout.judge.sequential import SequentialGoodput, SequentialPercentile, SequentialRate
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.evidence import Evidence, GateResult, Step, as_json, read_evidence
from vllm_rollout.model.load_result import GeneratorFigures
from vllm_rollout.report.derivation import working
from vllm_rollout.report.explain import explain_evidence
from vllm_rollout.report.formatting import headline, outcome_counts
from vllm_rollout.report.plots import latency_plot, over_time_plot
from vllm_rollout.report.rows import ReportItem, report_items
from vllm_rollout.rollout.run import refusal_of

PACKAGE = Path(__file__).parents[2] / "vllm_rollout"
OLD = Path(__file__).parents[1] / "data" / "evidence-of-schema-1.json"
SURE = {"confidence": 0.95}
SLOW = np.where(np.arange(8000) % 250 >= 240, 3.5, 0.5) + np.arange(8000) / 1e5


def until_decided(one_more: Callable[[], Verdict]) -> Verdict:
    while (verdict := one_more()).outcome is Outcome.INCONCLUSIVE:
        pass
    return verdict


def verdicts() -> Iterator[Verdict]:
    """One of each method, and of each outcome where they are derived differently."""
    yield check(True, "ready")
    yield every_sample_within([1.0, 2.0], limit_seconds=5.0)
    for limit in (0.4, 1.0, 3.0):
        yield percentile_verdict_in_order(SLOW, percentile=95, limit_seconds=limit, **SURE)
    limits = GoodputLimits(latency_seconds=1.0)
    yield goodput_verdict_in_order(limits, target=0.5, latency_seconds=SLOW, **SURE)
    for limit in (0.001, 0.04, 0.2):
        yield rate_verdict_in_order(SLOW > 2, limit=limit, **SURE)
    yield bucket_verdict(
        {1.0: 900, 2.5: 1000, math.inf: 1000}, percentile=95, limit_seconds=3, **SURE
    )
    yield compare_rate(3, 3000, 4, 3000, largest_difference=0.005, **SURE)
    yield compare_latency(SLOW, SLOW, percentile=95, largest_ratio=1.1, **SURE)
    rate = SequentialRate(limit=0.01, burst=10, **SURE)
    late = SequentialPercentile(percentile=95, limit_seconds=3, **SURE)
    good, bad = (SequentialGoodput(target=0.9, limits="l", **SURE) for _ in range(2))
    spending = AlphaSpending(confidence=0.95, early=0.2)
    yield SequentialRate(limit=0.01, **SURE).update(0, 100)
    yield SequentialRate(limit=0.01, **SURE).update(0, 600)
    yield early_verdict(until_decided(lambda: rate.update(1, 1)), None, spending)
    yield until_decided(lambda: late.update([4.0]))
    yield until_decided(lambda: good.update(True))
    yield until_decided(lambda: bad.update(False))


@pytest.fixture(scope="module")
def evidence(
    make_gate: Callable[..., GateResult], make_evidence: Callable[..., Evidence]
) -> Evidence:
    """Of all kinds of verdicts; the first on the load is the generator's, in seconds as well."""
    figures = GeneratorFigures(
        lag_seconds=0.2, cpu=0.5, dropped=0, total=100,
        workers=1, cpu_seconds_per_request=0.01, rate_per_second=10,
    )  # fmt: skip
    lagging = generator_verdict(figures, max_lag_seconds=0.1, max_cpu=0.9)
    gates = [make_gate(f"gate_{i}", each, load="load") for i, each in enumerate(verdicts())]
    gates += [make_gate("error", error="first line\nlast line"), make_gate("skip", skipped="why")]
    gates += [make_gate("silent", unreachable="http://127.0.0.1:1", error="refused")]
    made = make_evidence(
        make_gate("lag", lagging, load="load"), *gates, changed="revision 3", exit_code=1
    )
    step = Step(at=made.started, title="ramp", detail="half", outcome=Outcome.PASS)
    return replace(made, steps=(step,), conclusion="Gates failed")


PROSE = ("reason", "remedy", "title", "detail", "conclusion", "changed", "skipped", "error")


def in_nonsense(value: Any) -> Any:
    """The same with other words in each text for people; one that is empty stays so."""
    if isinstance(value, tuple):
        return tuple(map(in_nonsense, value))
    if not hasattr(value, "__dataclass_fields__"):
        return value
    fields = {name: getattr(value, name) for name in value.__dataclass_fields__}
    for name, inner in fields.items():
        if name in PROSE and isinstance(inner, str):
            fields[name] = "\n".join("P50 buckets xyzzy" for _ in inner.splitlines())
        else:
            fields[name] = in_nonsense(inner)
    return replace(value, **fields)


def figures(item: ReportItem) -> Any:
    """All of a row that is no text for people."""
    bare = replace(item, node_id="", title="", load_verdict=None)
    found = (
        None if v is None else replace(v, reason="", remedy="")
        for v in (*item.verdicts, item.load_verdict)
    )
    plots = [
        plot(item.load, item.load_verdict) for plot in (latency_plot, over_time_plot) if item.load
    ]
    return replace(bare, verdicts=(), attachments=()), *found, *plots


def test_words_change_nothing_but_words(evidence: Evidence) -> None:
    other = in_nonsense(evidence)
    assert as_json(other) != as_json(evidence)
    pairs = list(zip(report_items(evidence), report_items(other), strict=True))
    assert len(pairs) > 20
    for item, nonsense in pairs:
        assert figures(nonsense) == figures(item)
        assert list(map(working, nonsense.verdicts)) == list(map(working, item.verdicts))
    assert explain_evidence(other).renderables
    assert headline(other).word == headline(evidence).word
    assert (other.outcome, outcome_counts(other)) == (evidence.outcome, outcome_counts(evidence))
    ends = [refusal_of(each.runs[0]) for each in (evidence, other)]
    assert len({end.code for end in ends if end}) == 1


def test_every_method_is_derived_by_what_it_is(evidence: Evidence) -> None:
    shown = {
        verdict.method: "\n".join(working(verdict))
        for gate in evidence.runs[0].gates
        for verdict in gate.verdicts
    }
    assert set(shown) == {None, *VerdictMethod} - {VerdictMethod.SEARCH}
    assert "rank 7,600 of 8,000 (P95 of 8,000" in shown[VerdictMethod.ORDER_STATISTICS]
    assert "requests in a row count as one" in shown[VerdictMethod.ORDER_STATISTICS]
    assert "the edge of its bucket" in shown[VerdictMethod.BUCKETS]
    assert "Clopper–Pearson, computed again" in shown[VerdictMethod.CLOPPER_PEARSON]
    assert "the e-value for a share above 10% is" in shown[VerdictMethod.ANYTIME_VALID]
    assert "several samples" in shown[VerdictMethod.TWO_SAMPLES]
    assert "compared as they are" in shown[VerdictMethod.COMPARED]


def test_the_plot_has_the_latency_limit_whatever_else_is_in_seconds(evidence: Evidence) -> None:
    (first, *_) = report_items(evidence)
    assert first.verdicts[0].method is VerdictMethod.COMPARED
    assert first.load_verdict is not None
    assert first.load_verdict.method is VerdictMethod.ORDER_STATISTICS


def test_a_word_on_headroom_keeps_the_method() -> None:
    verdict = rate_verdict_in_order(SLOW > 9, limit=0.1, **SURE)
    here = Deployment("m", "staging", "system")
    told = with_headroom(
        verdict, None, deployment=here, expected_per_second=1, offered_per_second=1
    )
    assert (told.method, told.block) == (VerdictMethod.CLOPPER_PEARSON, 1)


def test_evidence_of_schema_1_is_read_and_explained() -> None:
    old = read_evidence(OLD)
    assert old.schema == 1
    shown = [line for item in report_items(old) for v in item.verdicts for line in working(v)]
    assert any("Clopper–Pearson, computed again" in line for line in shown)
    assert any("evidence names the method since schema 2" in line for line in shown)
    assert any(item.load_verdict for item in report_items(old))


ASKING = {
    "startswith", "endswith", "split", "rsplit", "partition", "rpartition", "find", "index",
    "count", "removeprefix", "removesuffix", "match", "search", "fullmatch", "findall", "finditer",
}  # fmt: skip
KUBERNETES = {"judge/diagnosis.py", "judge/pod_start.py", "judge/rollback_triggers.py"}
"""They read the reasons of pods and events, which are words of an API."""


def test_no_code_asks_what_is_in_a_text_for_people() -> None:
    def is_prose(node: ast.AST) -> bool:
        return isinstance(node, ast.Attribute) and node.attr in {"reason", "remedy", "conclusion"}

    asked = []
    for file in PACKAGE.rglob("*.py"):
        name = str(file.relative_to(PACKAGE))
        if name in KUBERNETES or name.startswith(("platform/", "loadtests/", "gates/")):
            continue
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Compare):
                parts = [node.left, *node.comparators]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                parts = [node.func.value, *node.args] if node.func.attr in ASKING else []
            else:
                continue
            if any(map(is_prose, parts)):
                asked.append(f"{name}:{node.lineno}")
    assert asked == []
