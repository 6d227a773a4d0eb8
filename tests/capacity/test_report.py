"""A search's page and file: true to the figures, whole without some, and safe with hostile text."""

import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.axe import question
from support.devtools import page_in_browser

from vllm_rollout.capacity.headroom import capacity_found
from vllm_rollout.capacity.model import Capacity, Probe, Purpose, StopReason
from vllm_rollout.capacity.plot import capacity_plot
from vllm_rollout.capacity.rate_probe import Slos
from vllm_rollout.capacity.report import CapacityReport, probe_line, write_capacity
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.verdict import Outcome
from vllm_rollout.report.run_index import read_run
from vllm_rollout.report.run_rows import RunRow

HOSTILE = "<script>alert(1)</script>"
HELD = Probe(
    per_second=40.0,
    aim=Purpose.PROVE,
    outcome=Outcome.PASS,
    holds=True,
    seconds=120,
    reason="every SLO holds",
    requests=4_800,
    p50_seconds=0.4,
    p95_seconds=0.9,
    good_per_second=39.9,
)
BROKEN = replace(
    HELD,
    per_second=44.0,
    aim=Purpose.EXPLORE,
    outcome=Outcome.FAIL,
    holds=False,
    reason=HOSTILE,
    p95_seconds=math.inf,
    failures=900,
)
FOUND = Capacity(
    ending=StopReason.FOUND, confidence=0.95, lower=38.0, upper=44.0, estimate=41.2, proved=40.0
)


def report(*probes: Probe, capacity: Capacity = FOUND) -> CapacityReport:
    return CapacityReport(
        run_id="20261125-100000-abcd",
        suite_version="0",
        deployment=Deployment("llama-2-7b", "staging"),
        base_url="http://127.0.0.1:8000",
        revision=None,
        build=None,
        policy_digest="sha256:0",
        slos=Slos(latency_seconds=3.0),
        expected_per_second=10,
        alone_seconds=0.3,
        started=datetime(2026, 11, 25, tzinfo=UTC),
        finished=datetime(2026, 11, 25, tzinfo=UTC),
        probes=probes,
        capacity=capacity,
        verdict=capacity_found(capacity, expected_per_second=10, requests=9_600),
        exit_code=0,
    )


def test_the_page_shows_the_interval_and_hostile_text_is_only_text(tmp_path: Path) -> None:
    page = write_capacity(report(HELD, BROKEN), tmp_path).read_text(encoding="utf-8")
    assert "41.2/s (38 – 44/s at 95%)" in page
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    assert page.count("<svg") == 2
    written = json.loads((tmp_path / "capacity.json").read_text(encoding="utf-8"))
    assert written["capacity"]["lower"] == 38.0
    assert written["probes"][1]["p95_seconds"] is None  # JSON has no infinity


def test_a_search_is_in_the_list_of_runs(tmp_path: Path) -> None:
    found = report(HELD)
    folder = tmp_path / found.deployment.model / found.run_id
    write_capacity(found, folder)
    row = read_run(folder)
    assert isinstance(row, RunRow)
    assert (row.kind, row.outcome, row.page) == (
        "capacity", Outcome.PASS, f"llama-2-7b/{found.run_id}/capacity.html",
    )  # fmt: skip
    assert row.environments[0].capacity == found.verdict


def test_plots_are_whole_and_draw_every_probe_and_the_limit() -> None:
    goodput, latency = (
        ET.fromstring(plot)
        for plot in capacity_plot((HELD, BROKEN), FOUND, Slos(latency_seconds=3.0), 10)
    )
    said = ["".join(plot.itertext()) for plot in (goodput, latency)]
    assert all("capacity 38 – 44/s at 95%" in text for text in said)
    assert "expected 10/s" in said[0]
    assert "P95 limit 3 s" in said[1]
    assert all(plot.get("role") == "img" for plot in (goodput, latency))


def test_a_search_that_measured_nothing_draws_nothing_and_is_written_all_the_same(
    tmp_path: Path,
) -> None:
    nothing = replace(
        FOUND, ending=StopReason.UNMEASURED, lower=0.0, upper=math.inf, estimate=None, proved=None
    )
    page = write_capacity(report(capacity=nothing), tmp_path).read_text(encoding="utf-8")
    assert "<svg" not in page
    assert "INCONCLUSIVE" in page
    unmeasured = replace(HELD, requests=0, p50_seconds=None, p95_seconds=None)
    assert capacity_plot((unmeasured,), nothing, Slos(error_limit=0.1), 10) == ()


def test_a_line_says_how_a_load_ended_and_what_an_undecided_one_leans_to() -> None:
    assert probe_line(HELD).startswith("PASS 40/s (prove, 120 s): P95 0.9 s, 39.9/s good")
    looked = replace(HELD, aim=Purpose.EXPLORE, outcome=Outcome.INCONCLUSIVE)
    assert probe_line(looked).startswith("HELD")
    assert probe_line(replace(looked, holds=False)).startswith("DOUBTFUL")
    assert probe_line(replace(looked, generator_limited="late")).startswith("INCONCLUSIVE")


@pytest.mark.browser
def test_the_page_fits_every_screen_and_breaks_no_rule_of_wcag_aa(tmp_path: Path) -> None:
    url = write_capacity(report(HELD, BROKEN), tmp_path).as_uri()
    with page_in_browser(tmp_path / "profile") as page:
        page.open(url)
        for width in (390, 1900):
            page.size(width)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        for colours in ("light", "dark"):
            page.colours(colours)
            assert page.evaluate(question()) == []
