"""The report in a real browser, as people open it: from a file, on a phone or a wide screen, with
and without light, on paper."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from support.axe import question
from support.devtools import Page, page_in_browser

from vllm_rollout.model.evidence import Attachment, Evidence, GateResult, Override, Step
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.report.render import write_reports

pytestmark = pytest.mark.browser

LARGEST_BYTES = 1_000_000
MOST_PRINTED = 6
OPEN_ALL = "document.querySelectorAll('details').forEach(each => each.open = true)"
VISIBLE = "[...document.querySelectorAll('.gate')].filter(e => e.offsetHeight).length"
OPENED = "[...document.querySelectorAll('.gate[open] .name')].map(e => e.innerText)"
ABOVE = (
    "[...document.querySelectorAll('{}')]"
    ".every(e => e.getBoundingClientRect().top < innerHeight && e.offsetHeight)"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One page of one browser, for all tests here."""
    with page_in_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def waiting(
    make_gate: Callable[..., GateResult],
    make_evidence: Callable[..., Evidence],
    passing: Verdict,
    failing: Verdict,
    unknown: Verdict,
) -> Evidence:
    """A run that waits for QA, with all that a report may hold."""
    answers = tuple(Attachment(title=f"Question {n}", text="It was. " * 40) for n in (1, 2))
    evidence = make_evidence(
        make_gate("latency", replace(passing, percentile=95.0), load="load"),
        make_gate("error_rate", replace(unknown, outcome=Outcome.PASS), load="load"),
        make_gate(
            "outputs", Verdict(outcome=Outcome.PASS, reason="2 answers"), attachments=answers
        ),
        make_gate("soak", replace(passing, measured=90_000.0, limit=86_400.0, upper=None)),
        exit_code=3,
        conclusion="All gates passed, and the evidence waits for sign-off: --evidence DIGEST",
        awaits_sign_off=True,
        override=Override(by="Ada", reason="an outage", passed_over=("the soak",)),
    )
    at = evidence.started
    ends = (None, Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE)
    steps = [
        Step(at=at + timedelta(minutes=n), title=f"step {n}", detail="a/b" * 60, outcome=end)
        for n, end in enumerate(ends)
    ]
    return replace(evidence, steps=(*steps, Step(at=at + timedelta(minutes=9), title="exit 3")))


def written(evidence: Evidence, folder: Path) -> str:
    return write_reports(evidence, folder, sign_off_words=("--key", "FILE")).html.as_uri()


def test_the_page_fits_every_screen_and_paper_and_breaks_no_rule_of_wcag_aa(
    page: Page, waiting: Evidence, tmp_path: Path
) -> None:
    url = written(waiting, tmp_path)
    assert page.evaluate(question()), "an empty page breaks some"
    page.requested.clear()
    page.open(url)
    page.evaluate(OPEN_ALL)
    for width in (390, 1300, 1900):
        page.size(width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    for colours in ("light", "dark"):
        page.colours(colours)
        assert page.evaluate(question()) == []
    page.open(url)
    printed = re.findall(rb"/Type\s*/Page\b", page.pdf())
    assert 1 <= len(printed) <= MOST_PRINTED
    assert set(page.requested) <= {"about:blank", url}
    assert (tmp_path / "report.html").stat().st_size < LARGEST_BYTES


def test_the_first_screen_has_what_a_decision_needs(
    page: Page, waiting: Evidence, make_evidence: Callable[..., Evidence], tmp_path: Path
) -> None:
    page.size(1300, 900)
    page.open(written(waiting, tmp_path))
    for part in (".banner", ".asked", ".asked .command", ".tile", ".changed"):
        assert page.evaluate(ABOVE.format(part)), part
    assert page.evaluate("document.title") == "llama-2-7b: rollout WAITS FOR SIGN-OFF"
    banner = page.evaluate("document.querySelector('.banner').innerText")
    assert "WAITS FOR SIGN-OFF" in banner
    assert "P95 1.21 s of 3 s" in banner
    assert "waits for QA: read 2 outputs" in banner
    command = page.evaluate("document.querySelector('.asked .command').innerText")
    assert command.endswith(f"--evidence {waiting.digest[7:23]} --key FILE")
    assert page.evaluate("document.querySelectorAll('.plots svg').length") == 2

    back = replace(waiting, awaits_sign_off=False, exit_code=5, conclusion="Rolled back to 1.")
    page.open(written(back, tmp_path / "back"))
    banner = page.evaluate("document.querySelector('.banner').innerText")
    assert "ROLLED BACK\n" in banner
    assert "Rolled back to 1; P95" in banner


def test_gates_are_filtered_and_a_link_opens_one(
    page: Page,
    make_gate: Callable[..., GateResult],
    make_evidence: Callable[..., Evidence],
    passing: Verdict,
    failing: Verdict,
    tmp_path: Path,
) -> None:
    gates = (make_gate("latency", passing), make_gate("pods", passing), make_gate("soak", failing))
    url = written(make_evidence(*gates), tmp_path)
    page.open(url)
    assert page.evaluate(OPENED) == ["Soak"]
    assert page.evaluate(VISIBLE) == 3
    assert page.evaluate("document.querySelectorAll('#show-inconclusive:disabled').length") == 1
    for outcome, count in (("pass", 2), ("fail", 1), ("all", 3)):
        page.evaluate(f"document.getElementById('show-{outcome}').click()")
        assert page.evaluate(VISIBLE) == count
    page("Emulation.setScriptExecutionDisabled", value=True)  # of the page's own
    page.open(f"{url}#gate-staging-latency")
    page("Emulation.setScriptExecutionDisabled", value=False)
    assert page.evaluate(OPENED) == ["Latency", "Soak"]
    assert page.evaluate("document.querySelector('.contents').getBoundingClientRect().top") == 0


def test_a_hostile_script_does_not_run(page: Page, hostile: Evidence, tmp_path: Path) -> None:
    """Every field holds a script that would rename the page; the page keeps its name."""
    page.size(390)
    page.open(written(hostile, tmp_path))
    page.evaluate(OPEN_ALL)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.title") != "hacked"
    assert page.evaluate("document.querySelectorAll('img[onerror]').length") == 0
    assert page.evaluate("document.querySelectorAll('#results-table .col-result').length") >= 3
