"""The list of runs in a real browser: its address says what is shown and compared."""

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
from support.axe import question
from support.browser import dom
from support.devtools import page_in_browser

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


def test_the_list_is_readable_for_everybody_on_a_phone_and_a_wide_screen(
    make_gate: Callable[..., GateResult],
    make_evidence: Callable[..., Evidence],
    passing: Verdict,
    failing: Verdict,
    tmp_path: Path,
) -> None:
    """axe-core finds nothing, nothing is off the screen, and nothing is asked of the network."""
    for run, verdict in zip("0123", (passing, failing, passing, failing), strict=True):
        name = f"2026012{run}-093000-0a1b"
        evidence = make_evidence(make_gate("latency", verdict, load="load"), run_id=name)
        write_evidence(evidence, tmp_path / "llama-2-7b" / name / "evidence.json")
    (tmp_path / "llama-2-7b" / "20260201-093000-0a1b").mkdir()
    address = write_index(tmp_path).as_uri()
    choose_two = (
        "document.querySelectorAll('.pick input').forEach((each, n) => n % 2 && each.click())"
    )
    with page_in_browser(tmp_path / "profile") as page:
        for width, scheme in ((390, "dark"), (768, "light"), (1280, "dark"), (1900, "light")):
            page.size(width)
            page.colours(scheme)
            page.open(address)
            page.evaluate(choose_two)
            assert page.evaluate("document.querySelectorAll('#compared table').length") == 2
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(question()) == []
        assert {
            each for each in page.requested if not each.startswith(("file:", "about:", "data:"))
        } == set()
