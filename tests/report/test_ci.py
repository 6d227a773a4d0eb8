"""What a CI system is told: GitHub's summary, annotations and outputs, GitLab's note and dotenv."""

import json
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from markdown_it import MarkdownIt
from support.ci_jobs import commands, github_job, given_outputs

from vllm_rollout.http_client import HttpError
from vllm_rollout.model.deployment import Build, Deployment
from vllm_rollout.model.errors import ExitCode, RolloutError
from vllm_rollout.model.evidence import Evidence, GateResult
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.pytest_plugin.ci import command_after
from vllm_rollout.report import gitlab_note
from vllm_rollout.report.ci import tell_ci
from vllm_rollout.report.ci_summary import LONGEST, CiResult, annotations, outputs, summary
from vllm_rollout.report.gitlab_note import TOKEN, post_note
from vllm_rollout.report.junit import junit_xml
from vllm_rollout.report.render import write_reports

MakeGate = Callable[..., GateResult]
MakeEvidence = Callable[..., Evidence]
MODEL = "llama-2-7b"


@pytest.fixture
def in_github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of GitHub Actions: its folder, with the files `summary` and `outputs`."""
    monkeypatch.chdir(tmp_path)
    github_job(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
def many(
    make_gate: MakeGate,
    make_evidence: MakeEvidence,
    passing: Verdict,
    failing: Verdict,
    unknown: Verdict,
) -> Evidence:
    """Ninety gates: each third passes, fails, is inconclusive."""
    verdicts = (passing, unknown, failing)
    found = [replace(verdicts[n % 3], reason=f"as {n} says") for n in range(90)]
    return make_evidence(*(make_gate(f"g{n}", each) for n, each in enumerate(found)))


def result_of(evidence: Evidence | None = None, **more: Any) -> CiResult:
    fields = {"model": MODEL, "environment": "staging", "exit_code": 0, "evidence": evidence}
    return CiResult(**{**fields, **more})


@pytest.mark.parametrize("models", [1, 2, 5, 200])
def test_a_summary_of_any_run_has_sixty_lines_at_most(many: Evidence, models: int) -> None:
    results = [result_of(many, exit_code=1, next_command="x") for _ in range(models)]

    assert len(summary(results).splitlines()) <= LONGEST == 60


def test_what_failed_comes_first_then_the_pages_changes_then_values(
    make_gate: MakeGate,
    make_evidence: MakeEvidence,
    passing: Verdict,
    failing: Verdict,
    tmp_path: Path,
) -> None:
    before = make_evidence(make_gate("latency", passing), make_gate("pods", passing))
    ended = replace(before.runs[0], finished=before.runs[0].started)
    before = replace(before, runs=(ended,), run_id="20260126-093000-0a1b")
    now = make_evidence(
        make_gate("latency", failing), make_gate("pods", replace(passing, limit=5.0))
    )
    other = replace(now.runs[0], build=Build(values_digest="sha256:" + "ef" * 32))
    now = replace(now, runs=(other,))
    page = write_reports(now, tmp_path / now.run_id, kept=lambda _: [before])
    result = result_of(
        now, exit_code=1, comparisons=page.comparisons, next_command="gate-and-promote m"
    )
    lines = summary([result]).splitlines()

    assert lines[0] == "### llama-2-7b: staging gates FAIL"
    assert lines[2] == "**FAIL** (exit code 1): 2 gates: 1 pass, 1 fail."
    why = "P95 is above the limit → Add replicas or lower max-num-seqs."
    order = [
        "- **FAIL** staging: Latency: 4.02 s (≥ 3.91 s at 95%) limit 3 s n=3,750 " + why,
        "**Next:** `gate-and-promote m`",
        "Changed since `20260126-093000-0a1b`, the last run of staging that passed:",
        f"- values: {'ab' * 12}… → {'ef' * 12}…",
        "- Latency: PASS → FAIL",
        "- Latency: 1.21 s (≤ 1.3 s at 95%) → 4.02 s (≥ 3.91 s at 95%) +232.2%",
        "- Pods: limit: 3 s → 5 s",
        "| FAIL | staging: Latency | 4.02 s | 3.91 s – 4.2 s at 95% | 3 s | 3,750 |",
        "| PASS | staging: Pods | 1.21 s | 1.13 s – 1.3 s at 95% | 5 s | 3,750 |",
    ]
    assert [line for line in lines if line in order] == order
    shown = [change for each in page.comparisons for change in (*each.build, *each.figures)]
    changed = [line for line in lines if " → " in line and not line.startswith("- **")]
    assert len(changed) == len([change for change in shown if not change.same])


def test_what_several_gates_would_explain_alike_is_explained_once_and_a_gate_is_one(
    make_gate: MakeGate, make_evidence: MakeEvidence, failing: Verdict, unknown: Verdict
) -> None:
    not_asked = replace(unknown, reason="not asked", measured=None, remedy="")
    gates = [make_gate("health", failing), make_gate("inference", not_asked)]
    gates += [make_gate("inference", not_asked), make_gate("latency", not_asked)]
    evidence = make_evidence(*gates)
    result = result_of(evidence, exit_code=1)
    lines = summary([result]).splitlines()

    assert lines[2] == "**FAIL** (exit code 1): 3 gates: 1 fail, 2 inconclusive."
    alike = "- **INCONCLUSIVE** staging: Inference, Latency: not asked"
    assert [line for line in lines if "not asked" in line] == [alike]
    assert len([line for line in lines if line.startswith(("| FAIL", "| INCONCLUSIVE"))]) == 3
    assert [title["title"] for _, title, _ in commands("\n".join(annotations([result])))] == [
        f"{MODEL}: staging gates FAIL",
        f"{MODEL} staging: Health",
        f"{MODEL} staging: Inference, Latency",
    ]


HOSTILE = (
    "::error file=a::stolen\n::set-output name=verdict::pass\r/approve\n# heading @everyone #12 "
    "!34 ![i](http://e.test/x) <script>alert(1)</script> `code` | cell | __b__ %0A::warning::w "
    "www.evil.test $1 -->"
)


def test_nothing_that_a_model_said_is_markup_or_a_command(
    make_gate: MakeGate, make_evidence: MakeEvidence, failing: Verdict
) -> None:
    bad = replace(failing, reason=HOSTILE, remedy=HOSTILE)
    evidence = make_evidence(
        make_gate("latency", bad, title=HOSTILE), conclusion=HOSTILE, exit_code=5
    )
    result = result_of(evidence, exit_code=5, next_command=f"x {HOSTILE}")
    text = summary([result, result_of(problem=HOSTILE, model=HOSTILE)])

    # Code shows what is in it as it is.
    plain = re.sub(r"(?<!\\)(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
    begins = ("### ", "**", "- ", "| ", "|-", "Evidence ", "Report", "")
    assert all(line.startswith(begins) for line in text.splitlines())
    assert re.findall(r"<|[^\\]\]\(|[@#!$]\w|://|www\.|(?<!\\)_", plain) == []
    assert len(re.findall(r"(?<!\\)\|", plain.split("| FAIL |")[1].splitlines()[0])) == 5

    parsed = MarkdownIt("commonmark", {"linkify": False}).enable(["table", "strikethrough"])
    kinds = {child.type for token in parsed.parse(text) for child in token.children or [token]}
    assert kinds.isdisjoint({"html_inline", "html_block", "link_open", "image", "em_open"})

    printed = "\n".join(annotations([result]))
    assert [name for name, _, _ in commands(printed)] == ["error", "error"]
    assert "stolen" in commands(printed)[0][2]


def test_annotations_are_escaped_named_and_at_most_ten_of_a_kind(
    many: Evidence, make_gate: MakeGate, make_evidence: MakeEvidence, failing: Verdict
) -> None:
    odd = replace(failing, reason="50% of a:b,c", remedy="")
    evidence = make_evidence(make_gate("latency", odd, title="P95, of all: more"))
    report = Path("reports/m,1/report.html")
    (end, gate) = commands("\n".join(annotations([result_of(evidence, report=report)])))
    assert end[0] == gate[0] == "error"
    assert gate[1] == {"file": str(report), "title": f"{MODEL} staging: P95"}
    assert gate[2].endswith("50% of a:b,c")

    kinds = [name for name, _, _ in commands("\n".join(annotations([result_of(many)])))]
    assert (kinds.count("error"), kinds.count("warning")) == (10, 10)
    passed = make_evidence(make_gate("latency", replace(failing, outcome=Outcome.PASS)))
    assert annotations([result_of(passed)]) == []


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_end_of_a_rollout_is_told_also_before_any_gate(
    code: ExitCode, make_evidence: MakeEvidence, in_github: Path
) -> None:
    verdicts = {0: "pass", 3: "inconclusive", 4: "inconclusive", 130: "inconclusive"}
    evidence = make_evidence(exit_code=int(code), conclusion=f"Ended by {code.name}")
    none = replace(evidence, runs=())
    said: list[str] = []

    tell_ci([result_of(none, exit_code=code)], in_github / "reports", said.append)

    assert f"(exit code {int(code)}): Ended by {code.name}".replace("_", "\\_") in (
        in_github / "summary"
    ).read_text(encoding="utf-8")
    found = given_outputs(in_github / "outputs")
    assert (found["verdict"], found["exit-code"]) == (verdicts.get(code, "fail"), str(int(code)))
    assert bool(said) is (code is not ExitCode.OK)


def test_the_next_command_is_about_the_environment_that_did_not_pass(
    make_gate: MakeGate, make_evidence: MakeEvidence, passing: Verdict, failing: Verdict
) -> None:
    settings: Any = SimpleNamespace(policy=SimpleNamespace(order=("staging", "production")))
    good = make_evidence(make_gate("latency", passing))
    live = replace(good.runs[0], deployment=Deployment(MODEL, "production"))
    failed = make_evidence(make_gate("latency", failing))
    both = replace(failed, runs=(*failed.runs, live))

    assert command_after(settings, both) == f"pytest -m staging --model {MODEL}"
    assert command_after(settings, good) == f"gate-and-promote {MODEL} --to production"
    assert command_after(settings, replace(good, runs=(*good.runs, live))) == ""
    by_url = replace(good.runs[0], platform="url")
    assert command_after(settings, replace(good, runs=(by_url,))) == ""


def test_outputs_name_the_run_and_no_value_ends_before_its_end(
    in_github: Path, make_gate: MakeGate, make_evidence: MakeEvidence, passing: Verdict
) -> None:
    evidence = make_evidence(make_gate("latency", passing))
    report = in_github / "reports" / MODEL / evidence.run_id / "report.html"
    (in_github / "outputs").write_text("mine=1")  # no newline: another program's
    result = result_of(evidence, report=report, model="a\nverdict=pass\nEOF", environment="x\ry")

    tell_ci([result], in_github / "reports", lambda _: None)

    text = (in_github / "outputs").read_text(encoding="utf-8")
    assert text.startswith("mine=1\n")
    (in_github / "outputs").write_text(text.removeprefix("mine=1\n"))
    assert given_outputs(in_github / "outputs") == {
        "verdict": "pass",
        "exit-code": "0",
        "evidence-digest": evidence.digest,
        "run-id": evidence.run_id,
        "report-path": f"reports/{MODEL}/{evidence.run_id}/report.html",
        "model": "a verdict=pass EOF",
        "environment": "x\ufffdy",
        "build": evidence.runs[0].build.digest,  # type: ignore[union-attr]
    }
    link = "[Report](https://github.com/acme/llm/actions/runs/42#artifacts)"
    assert link in (in_github / "summary").read_text(encoding="utf-8")


def test_several_models_end_as_the_worst_of_them(many: Evidence) -> None:
    passed = replace(many, runs=(), exit_code=0, model="other")
    found = outputs([result_of(passed, model="other"), result_of(many, exit_code=1)])

    assert found["verdict"] == "fail"
    assert (found["exit-code"], found["model"]) == ("1", f"other,{MODEL}")

    text = summary([result_of(passed, exit_code=1), result_of(many, exit_code=1)])
    assert "**FAIL** (exit code 1): " in text
    assert "**PASS** (the session: exit code 1): " in text


def test_outside_of_a_ci_nothing_is_written(
    many: Evidence, in_github: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS")
    tell_ci([result_of(many)], in_github / "reports", pytest.fail)
    assert list(in_github.iterdir()) == []


def test_what_cannot_be_written_is_a_warning_and_the_rest_is(
    many: Evidence, in_github: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(in_github / "none" / "summary"))
    said: list[str] = []
    tell_ci([result_of(many)], in_github / "reports", said.append)
    assert "warning: the job summary could not be written" in said[-1]
    assert given_outputs(in_github / "outputs")["verdict"] == "fail"


def test_a_summary_may_be_a_pipe(
    many: Evidence, in_github: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = in_github / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pipe))

    tell_ci([result_of(many)], in_github / "reports", lambda _: None)

    assert os.read(end, 4) == b"### "
    os.close(end)


def test_who_is_interrupted_while_telling_ends_as_before(
    many: Evidence, in_github: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("vllm_rollout.report.ci.summary", interrupted)
    said: list[str] = []

    tell_ci([result_of(many)], in_github / "reports", said.append)

    assert said[-1] == "warning: the job summary could not be written: KeyboardInterrupt"
    assert given_outputs(in_github / "outputs")["verdict"] == "fail"


def test_junit_has_build_evidence_environment_and_bounds(
    make_gate: MakeGate, make_evidence: MakeEvidence, passing: Verdict
) -> None:
    evidence = make_evidence(make_gate("latency", passing))
    suite = ET.fromstring(junit_xml(evidence))[0]

    def properties(element: ET.Element) -> dict[str, str]:
        return {
            p.get("name", ""): p.get("value", "") for p in element.findall("properties/property")
        }

    build = evidence.runs[0].build
    assert build is not None
    assert suite[0].tag == "properties"  # before the cases, as the format has it
    of_suite = properties(suite)
    assert of_suite == {
        "model": MODEL,
        "environment": "staging",
        "build": build.digest,
        "evidence_digest": evidence.digest,
        "run_id": evidence.run_id,
    }
    of_case = properties(suite.findall("testcase")[0])
    assert (of_case["environment"], of_case["build"]) == ("staging", build.digest)
    assert (of_case["lower"], of_case["upper"], of_case["limit"]) == ("1.13", "1.3", "3.0")


# GitLab


@dataclass
class GitLab:
    """The notes of one merge request, served over HTTP."""

    notes: list[dict[str, Any]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    refuse: dict[str, int] = field(default_factory=dict)
    """Status by method."""
    others: set[int] = field(default_factory=set)
    """Numbers of notes that are somebody else's."""
    silent: Event | None = None
    url: str = ""
    tokens: set[str] = field(default_factory=set)

    def bodies(self) -> list[str]:
        return [note["body"] for note in self.notes]


@pytest.fixture
def gitlab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[GitLab]:
    """A GitLab, and the variables of a job of a merge request's pipeline in it."""
    found = GitLab()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(size)) if size else {}
            url = urlsplit(self.path)
            found.asked.append((self.command, url.path))
            found.tokens.add(self.headers["PRIVATE-TOKEN"])
            if found.silent:
                found.silent.wait(30)
                return
            status, given = found.refuse.get(self.command, 200), {}
            if status == 200 and self.command == "GET":
                page = int(parse_qs(url.query)["page"][0])
                given = found.notes[::-1][(page - 1) * 100 : page * 100]
            elif status == 200 and self.command == "POST":
                status, given = 201, {"id": len(found.notes) + 1, **body}
                found.notes.append(given)
            elif status == 200:
                number = int(url.path.rpartition("/")[2])
                status = 403 if number in found.others else 200
                if status == 200:
                    found.notes[number - 1]["body"] = body["body"]
            sent = json.dumps(given).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_PUT = answer  # noqa: N815

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        found.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(gitlab_note, "DEADLINE_SECONDS", 120)  # others may hold the CPU
        for name, value in {
            "GITLAB_CI": "true",
            "CI_API_V4_URL": f"{found.url}/api/v4",
            "CI_PROJECT_ID": "7",
            "CI_MERGE_REQUEST_IID": "12",
            "CI_JOB_NAME": "gate",
            "CI_JOB_URL": "https://gitlab.test/acme/llm/-/jobs/5",
            TOKEN: "token-of-this-test",
        }.items():
            monkeypatch.setenv(name, value)
        yield found
        if found.silent:
            found.silent.set()
        server.shutdown()
        thread.join()


_NOTES = "/api/v4/projects/7/merge_requests/12/notes"


def test_a_note_is_posted_once_and_updated_in_place(gitlab: GitLab) -> None:
    gitlab.notes += [{"id": n, "body": "a word of somebody's"} for n in range(1, 151)]

    post_note(f"{MODEL}/staging", "first")
    post_note(f"{MODEL}/staging", "second")
    post_note(f"{MODEL}/production", "of another environment")

    assert [body.partition("\n")[2] for body in gitlab.bodies()[150:]] == [
        "second",
        "of another environment",
    ]
    assert gitlab.tokens == {"token-of-this-test"}
    assert ("PUT", f"{_NOTES}/151") in gitlab.asked


def test_a_note_of_anothers_with_our_marker_is_left_as_it_is(gitlab: GitLab) -> None:
    post_note("m/staging", "first")
    copied = gitlab.bodies()[0]
    gitlab.notes.append({"id": 2, "body": copied})
    gitlab.others.add(2)

    post_note("m/staging", "second")

    assert gitlab.bodies()[1] == copied
    assert [body.partition("\n")[2] for body in gitlab.bodies()] == ["second", "first"]


@pytest.mark.parametrize(
    "refuse", [{"GET": 403}, {"POST": 403}, {"GET": 200, "POST": 502}, {"GET": 302}]
)
def test_a_note_that_is_refused_is_a_warning_and_is_not_tried_twice(
    gitlab: GitLab, refuse: dict[str, int], many: Evidence, tmp_path: Path
) -> None:
    gitlab.refuse = refuse
    said: list[str] = []
    tell_ci([result_of(many)], tmp_path / "reports", said.append)
    assert f"warning: the merge-request note could not be written: {gitlab.url}" in said[-1]
    assert "token-of-this-test" not in said[-1]
    assert len(gitlab.asked) == 1 + ("POST" in refuse)
    assert "ROLLOUT_VERDICT=fail" in (tmp_path / "reports" / "rollout.env").read_text()


def test_a_gitlab_that_does_not_answer_is_given_up_at_the_deadline(
    gitlab: GitLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    gitlab.silent = Event()
    monkeypatch.setattr(gitlab_note, "DEADLINE_SECONDS", 0.3)
    with pytest.raises((HttpError, RolloutError)):
        post_note("m/staging", "text")
    assert "POST" not in dict(gitlab.asked)


def test_too_many_notes_are_not_searched_for_ever(gitlab: GitLab) -> None:
    gitlab.notes += [{"id": n, "body": "x"} for n in range(1, 2101)]
    with pytest.raises(RolloutError, match="more than 2000 notes"):
        post_note("m/staging", "text")
    assert "POST" not in dict(gitlab.asked)


@pytest.mark.parametrize(
    ("changed", "asked"),
    [
        ({TOKEN: ""}, None),
        ({"CI_MERGE_REQUEST_IID": ""}, None),
        ({"CI_MERGE_REQUEST_PROJECT_ID": "9"}, _NOTES.replace("7", "9")),
        (
            {"CI_MERGE_REQUEST_IID": "", "CI_OPEN_MERGE_REQUESTS": "acme/llm!3,acme/llm!4"},
            "/api/v4/projects/acme%2Fllm/merge_requests/3/notes",
        ),
    ],
)
def test_a_note_goes_to_the_merge_request_of_the_pipeline_if_any(
    gitlab: GitLab, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], asked: str | None
) -> None:
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    post_note("m/staging", "text")
    assert {path for _, path in gitlab.asked} == ({asked} if asked else set())


def test_gitlab_gets_a_dotenv_of_safe_lines_and_a_link_to_the_report(
    gitlab: GitLab, many: Evidence, tmp_path: Path
) -> None:
    report = tmp_path / "reports" / MODEL / "r" / "report.html"
    result = result_of(many, report=report, model="a b\nX=1", environment="$(x)", exit_code=1)
    tell_ci([result], tmp_path / "reports", pytest.fail)

    lines = (tmp_path / "reports" / "rollout.env").read_text().splitlines()
    found = dict(line.split("=", 1) for line in lines)
    assert found.pop("ROLLOUT_BUILD") == many.runs[0].build.digest  # type: ignore[union-attr]
    assert found == {
        "ROLLOUT_VERDICT": "fail",
        "ROLLOUT_EXIT_CODE": "1",
        "ROLLOUT_EVIDENCE_DIGEST": many.digest,
        "ROLLOUT_RUN_ID": many.run_id,
        "ROLLOUT_REPORT_PATH": f"reports/{MODEL}/r/report.html",
    }
    (note,) = gitlab.bodies()
    job = "https://gitlab.test/acme/llm/-/jobs/5/artifacts/file"
    assert f"[Report]({job}/reports/{MODEL}/r/report.html)" in note
    assert note.startswith("<!-- vllm-rollout gate ")
    assert "-->" not in note.splitlines()[0].removesuffix("-->")
