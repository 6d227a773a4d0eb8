"""The report folder: whole, true to the evidence, and safe to open."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.evidence import Attachment, Evidence, GateResult, read_evidence
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.report.junit import junit_xml
from vllm_rollout.report.render import ReportPaths, write_reports


class Markup(HTMLParser):
    """The tags, attributes and text of an HTML document or fragment."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """All text, white space collapsed."""
        return " ".join(" ".join(self.texts).split())


@dataclass(frozen=True)
class Page:
    """A report as a browser's parser sees it before its script runs."""

    paths: ReportPaths
    markup: Markup
    data: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows the script will show."""
        return [row for rows in self.data["tests"].values() for row in rows]

    def gate(self, anchor: str) -> str:
        """The text of one gate's row and of what is inside."""
        html = self.paths.html.read_text(encoding="utf-8")
        begins = '<details class="gate'
        start = html.rindex(begins, 0, html.index(f'id="{anchor}"'))
        end = html.find(begins, start + 1)
        return Markup(html[start : end if end > 0 else html.index('id="conditions"')]).text

    @property
    def suite(self) -> ET.Element:
        """The JUnit test suite."""
        suite = ET.parse(self.paths.junit).getroot().find("testsuite")
        assert suite is not None
        return suite


def rendered(evidence: Evidence, folder: Path) -> Page:
    """Render `evidence` and take the page apart."""
    paths = write_reports(evidence, folder)
    markup = Markup(paths.html.read_text(encoding="utf-8"))
    (blob,) = [a["data-jsonblob"] for _, a in markup.tags if "data-jsonblob" in a]
    return Page(paths, markup, json.loads(blob or ""))


@pytest.fixture(scope="module")
def mixed(
    make_gate: Callable[..., GateResult],
    make_evidence: Callable[..., Evidence],
    passing: Verdict,
    failing: Verdict,
    unknown: Verdict,
    tmp_path_factory: pytest.TempPathFactory,
) -> Page:
    """A pass, a fail, an inconclusive gate and one that never ran."""
    answer = Attachment(title="Answer", text="It was a dark and stormy night. " * 100)
    gates = (
        make_gate("inference", Verdict(outcome=Outcome.PASS, reason="ok"), attachments=(answer,)),
        make_gate("latency", passing, failing, load="load", duration_seconds=61.5),
        make_gate("error_rate", unknown, load="load"),
    )
    evidence = make_evidence(*gates, expected=("inference", "latency", "error_rate", "soak"))
    return rendered(evidence, tmp_path_factory.mktemp("mixed"))


def test_inconclusive_is_an_outcome_of_its_own_in_the_page(mixed: Page) -> None:
    """Rows, filter and count: apart from fails and from passes."""
    assert [row["result"] for row in mixed.rows] == ["Passed", "Failed", "Error", "Error"]
    assert "INCONCLUSIVE" in mixed.gate("gate-staging-error_rate")
    assert "did not run" in mixed.gate("gate-staging-soak")
    for count in ("1 fail", "2 inconclusive", "1 pass"):
        assert count in mixed.markup.text
    filters = [a["data-test-result"] for tag, a in mixed.markup.tags if "data-test-result" in a]
    # The script of pytest-html knows these groups alone and stops at a missing filter.
    known = re.search(r"possibleFilters = \[(.*?)\]", mixed.markup.text)
    assert known is not None
    assert set(re.findall(r"'(\w+)'", known[1])) <= set(filters)


def test_the_page_says_what_was_measured_against_what(mixed: Page) -> None:
    """Verdict and evidence on top; per gate value, bounds, limit, n, why and what to do."""
    evidence = read_evidence(mixed.paths.evidence)
    assert "llama-2-7b: staging gates FAIL" in mixed.markup.text
    for text in (
        evidence.digest,
        "4 gates: 1 pass, 1 fail, 2 inconclusive",
        evidence.runs[0].build.digest if evidence.runs[0].build else "",
        evidence.runs[0].policy_digest,
        "2026-01-27 09:30:00 UTC",
        "sign-off",
        "FAIL staging, Latency : P95 is above the limit → Add replicas or lower max-num-seqs.",
        "Load: 20/s for 60 s",
    ):
        assert text in mixed.markup.text
    gate = mixed.gate("gate-staging-latency")
    for text in ("4.02 s", "3.91 s – 4.2 s at 95%", "limit 3 s", "n = 3,750", "61.5 s"):
        assert text in gate


def test_a_load_is_drawn_once_and_words_of_engineers_stand_apart(mixed: Page) -> None:
    text = mixed.markup.text
    assert text.count("requests per bin") == text.count("seconds since the start of the run") == 1
    html = mixed.paths.html.read_text(encoding="utf-8").partition('<div id="data-container"')[0]
    shown = re.sub(r'(?s)<details class="engineers">.*?</details>', "", html)
    for word in ("Holm", "exit code", "test_latency[", "Exit code"):
        assert word not in shown
    assert "test_latency[staging-llama-2-7b]" in html


def test_a_long_answer_is_cut_in_the_page_and_whole_in_the_evidence(mixed: Page) -> None:
    """2,000 characters are shown, and how many there were."""
    row = mixed.gate("gate-staging-inference")
    assert "… cut: 2,000 of 3,200 characters shown" in row
    attachment = read_evidence(mixed.paths.evidence).runs[0].gates[0].attachments[0]
    assert len(attachment.text) == 3_200


def test_the_page_fetches_nothing_and_names_no_machine(mixed: Page) -> None:
    """No link to a file or a host but pytest-html's own, no path and no host name."""
    loads = {"src", "href", "data", "action", "srcset"}
    links = {v for _, a in mixed.markup.tags for k, v in a.items() if k in loads and v}
    anchors = {f"#{a['id']}" for _, a in mixed.markup.tags if "id" in a}
    assert links - anchors == {"https://pypi.python.org/pypi/pytest-html"}
    html = mixed.paths.html.read_text(encoding="utf-8")
    assert "@import" not in html
    assert "url(" not in html
    assert str(mixed.paths.html.parent) not in html
    assert set(mixed.data["environment"]) == {"vllm-rollout", "Python", "Platform"}
    assert mixed.suite.get("hostname") == "localhost"


def test_junit_tells_a_fail_from_what_could_not_be_known(mixed: Page) -> None:
    """Fails are failures, inconclusive gates are errors that say so, passes have neither."""
    suite = mixed.suite
    assert [suite.get(k) for k in ("tests", "failures", "errors", "skipped")] == [
        "4",
        "1",
        "1",
        "1",
    ]
    assert suite.get("timestamp") == "2026-01-27T09:30:00+00:00"
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    fail = cases["test_latency[staging-llama-2-7b]"]
    assert fail.get("classname") == "staging"
    assert fail.get("time") == "61.500"
    assert fail.find("failure") is not None
    assert {(p.get("name"), p.get("value")) for p in fail.iter("property")} >= {
        ("outcome.1", "pass"),
        ("measured.2", "4.02"),
        ("limit.2", "3.0"),
    }
    error = cases["test_error_rate[staging-llama-2-7b]"].find("error")
    assert error is not None
    assert (error.get("message") or "").startswith("inconclusive: ")
    assert cases["missing-soak"].find("skipped") is not None, "nobody asked for it"


def test_no_id_of_a_gate_that_ran_makes_it_one_nobody_asked_for(
    make_gate: Callable[..., GateResult], make_evidence: Callable[..., Evidence], failing: Verdict
) -> None:
    gate = make_gate("ours", failing, item="test_ours[staging-llama-2-7b-a::missing-b]")
    suite = ET.fromstring(junit_xml(make_evidence(gate))).find("testsuite")
    assert suite is not None
    assert (suite.get("failures"), suite.get("skipped")) == ("1", "0")


@pytest.mark.parametrize("case", ["no gates", "no runs", "unreachable", "rolled back"])
def test_what_is_no_pass_has_no_clean_junit(
    case: str,
    make_gate: Callable[..., GateResult],
    make_evidence: Callable[..., Evidence],
    passing: Verdict,
    tmp_path: Path,
) -> None:
    """A CI that reads JUnit alone must not go on, and the banner says why."""
    evidence, word = {
        "no gates": (make_evidence(), "INCONCLUSIVE"),
        "no runs": (replace(make_evidence(), runs=()), "INCONCLUSIVE"),
        "unreachable": (make_evidence(make_gate("a", passing), exit_code=4), "INCONCLUSIVE"),
        "rolled back": (make_evidence(make_gate("a", passing), exit_code=5), "ROLLED BACK"),
    }[case]
    page = rendered(evidence, tmp_path)
    assert int(page.suite.get("failures", "0")) + int(page.suite.get("errors", "0")) > 0
    banner = page.markup.text.split("Model")[0]
    assert word in banner


def test_a_pass_is_clean_whatever_the_user_configured(
    make_gate: Callable[..., GateResult],
    make_evidence: Callable[..., Evidence],
    passing: Verdict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No ini file, conftest, module or variable of the user reaches the renderer."""
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "conftest.py").write_text("raise SystemExit('conftest was read')\n")
    (tmp_path / "jinja2.py").write_text("raise SystemExit('a module was shadowed')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    monkeypatch.setenv("PYTEST_PLUGINS", "no_such_plugin")
    monkeypatch.setenv("CI_JOB_TOKEN", "very-secret")
    evidence = make_evidence(make_gate("latency", passing))
    page = rendered(evidence, tmp_path / "reports" / "[a] $HOME b")
    assert [page.suite.get(k) for k in ("tests", "failures", "errors")] == ["1", "0", "0"]
    assert read_evidence(page.paths.evidence) == evidence
    assert "very-secret" not in page.paths.html.read_text(encoding="utf-8")


def test_hostile_text_is_text_everywhere(hostile: Evidence, tmp_path: Path) -> None:
    """Whatever a field holds, the page has one script, pytest-html's, and its fragments none."""
    page = rendered(hostile, tmp_path)
    fragments = [fragment for row in page.rows for fragment in row["resultsTableRow"]]
    # pytest-html's script sets these as HTML.
    fragments += [str(value) for value in page.data["environment"].values()]
    assert len([tag for tag, _ in page.markup.tags if tag == "script"]) == 1
    for markup in [page.markup, *map(Markup, fragments)]:
        assert not any("onerror" in attributes for _, attributes in markup.tags)
    for markup in map(Markup, fragments):
        assert {tag for tag, _ in markup.tags}.isdisjoint({"script", "img", "iframe", "object"})
    assert not any(attributes.get("src") == "x" for _, attributes in page.markup.tags)
    assert page.markup.text.count("document.title='hacked'") >= 6
    assert "{{7*7}}" in page.markup.text
    html = page.paths.html.read_text(encoding="utf-8")
    assert "\x1b" not in html
    assert "\\u001b" not in html
    assert "\x1b" not in page.paths.junit.read_text(encoding="utf-8")
    assert int(page.suite.get("failures", "0")) >= 2


@pytest.mark.usefixtures("no_process")
def test_a_report_is_rendered_in_this_process(hostile: Evidence, tmp_path: Path) -> None:
    """No pytest and nothing else is started for it."""
    assert write_reports(hostile, tmp_path).html.stat().st_size > 50_000


@pytest.mark.parametrize(
    "name", ["reports/example/evidence.json", "tests/data/evidence-of-schema-1.json"]
)
def test_evidence_of_an_earlier_version_outlives_its_report_made_again(
    name: str, tmp_path: Path
) -> None:
    before = read_evidence(Path(__file__).parents[2] / name)
    after = read_evidence(write_reports(before, tmp_path).evidence)
    assert (after, after.digest) == (before, before.digest)


def test_a_renderer_that_fails_loses_nothing(
    make_gate: Callable[..., GateResult],
    make_evidence: Callable[..., Evidence],
    passing: Verdict,
    tmp_path: Path,
) -> None:
    """The error shows the renderer's words, and the evidence is already there."""
    (tmp_path / "report.html").mkdir()
    evidence = make_evidence(make_gate("latency", passing))
    with pytest.raises(RolloutError, match="IsADirectoryError") as caught:
        write_reports(evidence, tmp_path)
    assert "evidence.json" in caught.value.remedy
    assert read_evidence(tmp_path / "evidence.json") == evidence
