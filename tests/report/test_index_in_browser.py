"""The list of runs in a real browser: its address says what is shown and compared."""

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
from support.browser import dom

from vllm_rollout.model.evidence import Evidence, GateResult, write_evidence
from vllm_rollout.model.verdict import Verdict
from vllm_rollout.report.index_page import write_index

pytestmark = pytest.mark.browser


def test_the_address_filters_and_compares(
    make_gate: Callable[..., GateResult],
    make_evidence: Callable[..., Evidence],
    passing: Verdict,
    failing: Verdict,
    tmp_path: Path,
) -> None:
    names = []
    hostile = "<img src=x onerror=\"document.title='hacked'\">"
    for number, verdict in enumerate((passing, failing, passing)):
        model, run = ("llama-2-7b", "mistral")[number == 2], f"2026012{number}-093000-0a1b"
        evidence = make_evidence(
            make_gate("latency", verdict, load="load", title=hostile), model=model, run_id=run
        )
        write_evidence(evidence, tmp_path / model / run / "evidence.json")
        names.append(f"{model}/{run}")
    page = write_index(tmp_path).as_uri()
    shown = dom(f"{page}#model=llama-2-7b&text=3.91&compare={names[1]},{names[0]}", tmp_path / "p")
    rows = dict(re.findall(r'<tbody id="([^"]+)"[^>]*?( hidden="")?>', shown))
    assert rows == {names[0]: ' hidden=""', names[1]: "", names[2]: ' hidden=""'}
    assert "1 of 3 runs" in shown
    compared = shown[shown.index('id="compared"') : shown.index('id="clear"')]
    text = " ".join(unescape(re.sub(r"<[^>]*>", " ", compared)).split())
    older, newer = (
        "PASS 1.21 s, ≤ 1.3 s at 95%, limit 3 s",
        "FAIL 4.02 s, ≥ 3.91 s at 95%, limit 3 s",
    )
    assert text.index(older) < text.index(newer)
    assert "differs" in compared
    assert "<title>Runs of vllm-rollout</title>" in shown
    assert "<img" not in shown
