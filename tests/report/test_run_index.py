"""The list of runs: what is believed, what each run found, trends, and two runs side by side."""

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vllm_rollout.cli.main import app
from vllm_rollout.model.evidence import Evidence, GateResult, write_evidence
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.report.index_page import index_html, write_index
from vllm_rollout.report.render import update_index
from vllm_rollout.report.run_index import Bounds, RunIndex, Unreadable, read_index
from vllm_rollout.report.run_rows import evidence_row
from vllm_rollout.report.trends import trend_svg, trends

START = datetime(2026, 1, 27, 9, 30, tzinfo=UTC)
RUNS = [f"2026012{day}-093000-0a1b" for day in range(7, 10)]
ERRORS = Verdict(
    outcome=Outcome.PASS,
    reason="below the limit",
    measured=0.0,
    lower=0.0,
    upper=0.0008,
    limit=0.001,
    confidence=0.95,
    n=3_750,
    unit="ratio",
)


@pytest.fixture
def reports(
    make_gate: Callable[..., GateResult],
    make_evidence: Callable[..., Evidence],
    passing: Verdict,
    failing: Verdict,
    tmp_path: Path,
) -> Path:
    """Three runs of one model, the last of which fails, and a capacity search of another."""
    for day, (run, latency) in enumerate(zip(RUNS, (passing, passing, failing), strict=True)):
        at = START + timedelta(days=day)
        gates = (make_gate("latency", latency, load="load"), make_gate("error_rate", ERRORS))
        evidence = make_evidence(*gates, run_id=run, started=at, finished=at)
        evidence = replace(evidence, runs=(replace(evidence.runs[0], started=at, finished=at),))
        write_evidence(evidence, tmp_path / "llama-2-7b" / run / "evidence.json")
        (tmp_path / "llama-2-7b" / run / "report.html").write_text("")
    capacity = tmp_path / "mistral" / "20260201-093000-0a1b"
    capacity.mkdir(parents=True)
    verdict = {"outcome": "pass", "reason": "holds at 40/s", "measured": 42, "limit": 10}
    content = {
        "schema": 1, "run_id": capacity.name, "policy_digest": "sha256:cd", "exit_code": 0,
        "deployment": {"model": "mistral", "environment": "staging"}, "revision": 1, "build": None,
        "started": START.isoformat(), "finished": START.isoformat(), "probes": [],
        "verdict": {**verdict, "unit": "1/s"},
    }  # fmt: skip
    (capacity / "capacity.json").write_text(json.dumps(content))
    (capacity / "capacity.html").write_text("")
    return tmp_path


def page_data(html: str) -> Any:
    """The data of the page's script."""
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    return json.loads(data)


def test_every_run_is_listed_with_its_figures_newest_first(reports: Path) -> None:
    index = read_index(reports)
    assert [row.run for row in index.runs] == ["20260201-093000-0a1b", *reversed(RUNS)]
    assert not index.unreadable
    capacity, failed = index.runs[:2]
    assert (failed.kind, failed.verdict, failed.page) == (
        "gates", "FAIL", f"llama-2-7b/{RUNS[2]}/report.html",
    )  # fmt: skip
    (staging,) = failed.environments
    assert staging.latency is not None
    assert staging.error_rate is not None
    assert (staging.latency.measured, staging.error_rate.upper) == (4.02, 0.0008)
    assert (capacity.kind, capacity.evidence) == ("capacity", "")
    html = index_html(index)
    for text in ("4.02 s", "limit 3 s", "≤ 0.08% at 95%,", "42/s", "holds at 40/s"):
        assert text in html


def test_two_runs_are_compared_by_build_and_gate_by_gate(reports: Path) -> None:
    data = page_data(index_html(read_index(reports, "llama-2-7b")))
    newer, older = (run["gates"]["staging::test_latency[staging]"] for run in data[:2])
    assert newer == [
        "staging", "Latency", "fail",
        [["4.02 s", "≥ 3.91 s at 95%", "3 s", "P95 is above the limit"]],
    ]  # fmt: skip
    assert older[2:] == ["pass", [["1.21 s", "≤ 1.3 s at 95%", "3 s", ""]]]
    assert data[0]["facts"]["Model revision, staging"] == "r7"
    assert data[0]["facts"]["Values, staging"] == "ab" * 6


def test_trends_go_over_the_runs_of_one_deployment_with_the_limit(reports: Path) -> None:
    found = {trend.title: trend for trend in trends(read_index(reports))}
    assert list(found) == ["P95 latency", "Error rate, upper bound"]
    latency = found["P95 latency"]
    assert [point.value for point in latency.points] == [1.21, 1.21, 4.02]
    assert latency.summary == "3 runs, from 1.21 s to 4.02 s; limit 3 s"
    drawn = trend_svg(latency)
    assert (drawn.count('class="pass"'), drawn.count('class="fail"')) == (2, 1)
    assert 'class="limit" d="M56 ' in drawn


def test_what_cannot_be_drawn_is_no_point_of_a_trend(reports: Path) -> None:
    row = read_index(reports).runs[1]
    for figure in (None, 0.0, -1.0, math.nan, math.inf):
        bad = replace(ERRORS, upper=figure, lower=figure, limit=figure, measured=figure)
        latency = replace(bad, unit="s", measured=1.0)
        environment = replace(row.environments[0], error_rate=bad, latency=latency)
        index = RunIndex(runs=(replace(row, environments=(environment,)),) * 3)
        (drawn,) = trends(index)
        assert "nan" not in trend_svg(drawn)
        assert page_data(index_html(index))


def test_what_is_not_to_be_believed_is_listed_and_breaks_nothing(
    reports: Path, make_evidence: Callable[..., Evidence]
) -> None:
    model = reports / "llama-2-7b"
    whole = (model / RUNS[0] / "evidence.json").read_text(encoding="utf-8")
    bad = {
        "changed": whole.replace("1.21", "0.21"),
        "cut": whole[:2_000],
        "empty": "",
        "deep": "[" * 100_000,
        "foreign": '{"evidence": 1, "digest": 2}',
        "of another run": whole,
    }
    for number, text in enumerate(bad.values()):
        folder = model / f"20260301-09300{number}-0a1b"
        folder.mkdir()
        (folder / "evidence.json").write_text(text, encoding="utf-8")
    pipe, under_way = model / "20260302-093000-0a1b", model / "20260303-093000-0a1b"
    for folder in (pipe, under_way, model / "notes", reports / "a file's folder"):
        folder.mkdir()
    os.mkfifo(pipe / "evidence.json")
    (reports / "README.md").write_text("")
    name = "<script>alert(1)\x1b[2J"
    write_evidence(
        make_evidence(model=name, run_id=RUNS[0]), reports / name / RUNS[0] / "evidence.json"
    )
    index = read_index(reports)
    assert len(index.runs) == 5
    reasons = {each.name.rpartition("/")[2]: each.reason for each in index.unreadable}
    assert len(reasons) == len(bad) + 2
    assert "was changed after it was written" in reasons["20260301-093000-0a1b"]
    assert "of another run" in reasons["20260301-093005-0a1b"]
    assert reasons[pipe.name] == "evidence.json is no file"
    assert "under way" in reasons[under_way.name]
    page = index_html(index)
    assert "<script>alert" not in page
    assert "\x1b" not in page


def test_hostile_text_stays_text_in_the_page(hostile: Evidence) -> None:
    """Also in the data of its script."""
    row = replace(evidence_row(hostile, page="x"), model="</script>\x1b[2J", run="<img src=x>")
    (environment,) = row.environments
    row = replace(
        row, environments=(replace(environment, latency=replace(ERRORS, unit="s", measured=1.0)),)
    )
    page = index_html(RunIndex(runs=(row, row), unreadable=(Unreadable(name="<u>", reason="<i>"),)))
    assert page.count("<script") == page.count("</script>") == 2
    for text in ("<img", "<u>", "<i>", "\x1b", "\\u001b"):
        assert text not in page
    assert page_data(page)[0]["name"] == "</script>�[2J/<img src=x>"


def test_more_runs_than_are_read_are_counted(reports: Path) -> None:
    index = read_index(reports, bounds=Bounds(runs=2, size=10**9))
    assert (len(index.runs), index.left_out) == (2, 2)
    assert "2 older runs not listed" in index_html(index)
    assert read_index(reports, bounds=Bounds(runs=9, size=10)).left_out == 4


def test_the_page_is_true_after_a_run_that_ends_meanwhile(
    reports: Path, monkeypatch: pytest.MonkeyPatch, make_evidence: Callable[..., Evidence]
) -> None:
    """What ends while the page is written is in it at last; no part of a page is left."""
    late = "20260401-093000-0a1b"

    def meanwhile(index: RunIndex) -> str:
        write_evidence(make_evidence(run_id=late), reports / "llama-2-7b" / late / "evidence.json")
        return index_html(index)

    monkeypatch.setattr("vllm_rollout.report.index_page.index_html", meanwhile)
    assert late in write_index(reports).read_text(encoding="utf-8")
    assert not list(reports.glob("*.partial"))


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    assert "could not be written: FileNotFoundError" in update_index(tmp_path / "gone")


def run(*arguments: str) -> tuple[int, str]:
    """Run `vllm-rollout report`."""
    done = CliRunner().invoke(app, ["report", *arguments], catch_exceptions=False)
    return done.exit_code, done.output


def test_the_command_finds_the_newest_and_the_named_report(
    reports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a browser it names the URL; what is changed or not there is refused."""
    monkeypatch.setenv("VLLM_ROLLOUT_REPORT_DIR", str(reports))
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    code, said = run("llama-2-7b", "--open")
    assert code == 0
    newest = reports / "llama-2-7b" / RUNS[2] / "report.html"
    assert f"report: {newest}" in said
    assert f"no browser could be started here: open {newest.as_uri()}" in said
    assert "mistral" in run()[1]
    assert RUNS[0] in run("llama-2-7b", RUNS[0][:8])[1]
    assert RUNS[1] in run(RUNS[1])[1]
    assert RUNS[2] in run("meta-llama/Llama-2-7b")[1], "as --model took it"
    code, said = run("--index", "llama-2-7b", "--open")
    assert f"{(reports / 'index.html').as_uri()}#model=llama-2-7b" in said
    found = json.loads(run("llama-2-7b", "--json")[1])
    assert [each["outcome"] for each in found["runs"]] == ["fail", "pass", "pass"]
    for wrong in (["phi"], ["llama-2-7b", "2025"], ["llama-2-7b", "2026"], ["x.json", "--index"]):
        assert run(*wrong)[0] == 2
    evidence = newest.with_name("evidence.json")
    evidence.write_text(evidence.read_text(encoding="utf-8").replace("4.02", "0.02"))
    code, said = run("llama-2-7b", RUNS[2])
    assert (code, "was changed after it was written" in said) == (2, True)
    code, said = run("llama-2-7b")
    assert (code, RUNS[1] in said.splitlines()[0]) == (0, True)
    assert f"no report of 1 newer run, the last llama-2-7b/{RUNS[2]}: " in said


def test_a_browser_that_stays_in_front_keeps_nobody_waiting(
    reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command ends while the browser still waits, here for somebody who reads its address."""
    browser, address = tmp_path / "browser", tmp_path / "address"
    os.mkfifo(address)
    browser.write_text(f'#!/bin/sh\necho "$1" > {address}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(browser))
    monkeypatch.setattr("vllm_rollout.cli.reports._BROWSER_SECONDS", 0.1)
    code, said = run("mistral", "--open", "--report-dir", str(reports))
    assert (code, "no browser" in said) == (0, False)
    assert address.read_text().strip().endswith("/mistral/20260201-093000-0a1b/capacity.html")


@pytest.mark.usefixtures("no_process")
def test_an_evidence_file_is_rendered_again_in_this_process(reports: Path, tmp_path: Path) -> None:
    """Neither a pytest nor anything else is started, for the page, JUnit or the list of runs."""
    evidence = reports / "llama-2-7b" / RUNS[0] / "evidence.json"
    assert run(str(evidence), "--out", str(tmp_path / "again"))[0] == 0
    assert {each.name for each in (tmp_path / "again").iterdir()} == {
        "evidence.json", "junit.xml", "report.html",
    }  # fmt: skip
    later = reports / "llama-2-7b" / RUNS[2] / "evidence.json"
    assert run(str(later), "--out", str(tmp_path / "alone" / "later"))[0] == 0
    page = (tmp_path / "alone" / "later" / "report.html").read_text(encoding="utf-8")
    assert f"The last passing run before this: {RUNS[1]}" in page
    assert run("--index", "--report-dir", str(reports))[0] == 0
    assert run(str(evidence), RUNS[0])[0] == 2
