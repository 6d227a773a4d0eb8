"""The gates as a user runs them: real pytest, a real server, real load."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from support.ci_jobs import commands, github_job, given_outputs, told
from support.gate_runs import (
    FAST,
    MODEL,
    ONE_IN_FIFTY,
    SHORT,
    evidence_in,
    outcomes,
    run_gates,
    staging,
    started_gates,
    unreported,
)
from support.samples import not_printed, sample

from vllm_rollout.judge import Outcome
from vllm_rollout.simulator.running import RunningSimulator


def test_a_good_deployment_passes_and_leaves_its_report(tmp_path: Path) -> None:
    with RunningSimulator(model=MODEL, **FAST) as server:
        run = started_gates(tmp_path, *staging(server.url))

    assert run.returncode == 0, run.stdout + run.stderr
    evidence = evidence_in(tmp_path)
    found = outcomes(evidence)
    assert found == dict.fromkeys(
        [
            "health",
            "inference",
            "response_time",
            "latency",
            "error_rate",
            "load_capacity",
            "outputs",
        ],
        Outcome.PASS,
    )
    assert evidence.outcome is Outcome.PASS
    assert evidence.runs[0].platform == "url"
    shown = [
        line.replace("development", "staging")
        for line in sample("how-to.md", "Gate any OpenAI-compatible URL")
        if line.startswith(("PASS", "development", MODEL))  # the rest is pytest's own
    ]
    assert len(shown) == 5
    # Two samples that took equally long have one text, which is said once.
    alike = re.compile(r"(?:; 10 tokens in [\d.]+ s){1,2}")
    shown = [alike.sub("; 10 tokens in 1 s", line) for line in shown]
    assert not_printed(shown, alike.sub("; 10 tokens in 1 s", run.stdout)) == []
    folder = tmp_path / "reports" / MODEL / evidence.run_id
    assert "test_p95_latency[staging-llama-2-7b]" in (folder / "report.html").read_text()
    listed = (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")
    assert f'href="{MODEL}/{evidence.run_id}/report.html"' in listed
    assert ET.parse(folder / "junit.xml").getroot() is not None


def test_a_slow_deployment_fails_with_its_bound(tmp_path: Path) -> None:
    with RunningSimulator(model=MODEL, ttft_seconds="4", inter_token_seconds="0.001") as server:
        run = run_gates(
            tmp_path,
            *unreported(server.url),
            "-k",
            "latency",
            changes=(*SHORT, "load.rate=50/s", *ONE_IN_FIFTY),
        )

    assert run.returncode == 1
    (latency,) = evidence_in(tmp_path).runs[0].gates
    assert latency.outcome is Outcome.FAIL
    assert latency.verdicts[0].lower is not None
    assert latency.verdicts[0].lower > 3
    assert "1 failed" in run.stdout


def test_a_broken_deployment_is_not_loaded_to_the_end(tmp_path: Path) -> None:
    """A load of ten minutes ends in seconds, says why, and only what failed is a fail."""
    long = (*SHORT, "load.rate=50/s", "load.duration=10m")
    with RunningSimulator(model=MODEL, **FAST, error_rate="0.5", seed=3) as server:
        run = run_gates(
            tmp_path,
            *staging(server.url),
            "-k",
            "load_capacity or error_rate or p95",
            changes=(*long, "gates.load_capacity.expected_rate=50/s", "load.keep_requests=on"),
        )

    assert run.returncode == 1
    gate_run = evidence_in(tmp_path).runs[0]
    found = {gate.gate: gate for gate in gate_run.gates}
    assert Outcome.FAIL in {gate.outcome for gate in found.values()}
    assert Outcome.PASS not in {gate.outcome for gate in found.values()}
    failed = next(v for g in found.values() for v in g.verdicts if v.outcome is Outcome.FAIL)
    assert "whenever looked at" in failed.reason
    load = gate_run.loads["load"]
    assert 0 < load.total < 30_000
    assert "had failed, after" in load.stopped
    assert f"stopped early: {load.stopped}" in run.stdout
    (folder,) = tmp_path.glob(f"reports/{MODEL}/*")
    assert load.stopped in (folder / "report.html").read_text()
    kept = (folder / load.requests_file).read_text().splitlines()
    assert len(kept) == load.total
    assert {json.loads(line)["outcome"] for line in kept} >= {"ok", "http_error"}


def test_a_mix_of_requests_is_shown_class_by_class(tmp_path: Path) -> None:
    (tmp_path / "ours.jsonl").write_text(
        '{"prompt": "Say hello."}\n{"messages": [{"role": "user", "content": "Hi"}]}\n'
    )
    mix = [
        {"name": "chat", "weight": 2, "api": "chat", "prompts": "file", "file": "ours.jsonl"}
        | {"max_tokens": {"median": 4}},
        {"name": "batch", "stream": False, "prompts": "words", "prompt_tokens": {"median": 50}}
        | {"max_tokens": {"median": 2, "p95": 6}},
    ]
    with RunningSimulator(model=MODEL, **FAST) as server:
        run = run_gates(
            tmp_path,
            *staging(server.url),
            changes=(
                *SHORT,
                *ONE_IN_FIFTY,
                "load.keep_requests=on",
                f"load.traffic.workload={json.dumps(mix)}",
            ),
        )

    assert run.returncode == 0, run.stdout + run.stderr
    load = evidence_in(tmp_path).runs[0].loads["load"]
    assert [each.name for each in load.classes] == ["chat", "batch"]
    chat, batch = load.classes
    assert chat.total + batch.total == load.total
    assert chat.total > batch.total > 0
    assert batch.ttft_p95_seconds is None, "not streamed"
    assert batch.output_tokens_per_second > 0
    (folder,) = tmp_path.glob(f"reports/{MODEL}/*")
    kept = map(json.loads, (folder / load.requests_file).read_text().splitlines())
    streamed = {row["request_class"] for row in kept if row["first_token"] is not None}
    assert streamed == {"chat"}


@pytest.mark.parametrize(
    "traffic",
    [
        "load.traffic.replay={file: trace.csv, speed: 2}",
        "load.traffic.profile=[{rate: 80/s, to: 120/s, for: 1s}, {rate: 100/s, for: 1s}]",
    ],
)
def test_a_load_that_changes_is_judged_like_any_other(tmp_path: Path, traffic: str) -> None:
    rows = [f"2024-05-10 00:00:{number / 50:09.6f}0+00:00,20,3" for number in range(200)]
    (tmp_path / "trace.csv").write_text(
        "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows])
    )
    with RunningSimulator(model=MODEL, **FAST) as server:
        run = run_gates(tmp_path, *unreported(server.url), changes=(*SHORT, *ONE_IN_FIFTY, traffic))

    assert run.returncode == 0, run.stdout + run.stderr
    load = evidence_in(tmp_path).runs[0].loads["load"]
    assert load.total > 150
    assert (load.failures, load.unsent, load.stopped) == (0, 0, "")
    assert load.offered_per_second == pytest.approx(100, rel=0.3)


def test_a_generator_that_is_the_bottleneck_leaves_nothing_judged(tmp_path: Path) -> None:
    with RunningSimulator(model=MODEL, **FAST) as server:
        run = run_gates(
            tmp_path,
            *staging(server.url),
            "-k",
            "p95 or load_capacity",
            changes=(*SHORT, *ONE_IN_FIFTY, "load.max_lag=0.001ms", "load.max_cpu=0.01%"),
        )

    assert run.returncode == 1
    assert set(outcomes(evidence_in(tmp_path)).values()) == {Outcome.INCONCLUSIVE}
    assert "the generator was the bottleneck: at P99 requests left" in run.stdout
    assert "its busiest process used" in run.stdout
    assert "the generator needs" in run.stdout


WHOLE = '''
"""A gate of a team's own, on the whole load."""
import pytest
from vllm_rollout.judge import check

@pytest.mark.staging
def test_whole(load, verdict):
    verdict(check(load.total > 0, "requests came", n=load.total))
'''


def test_a_teams_own_gate_on_the_whole_load_judges_no_part_of_one(tmp_path: Path) -> None:
    (tmp_path / "test_whole.py").write_text(WHOLE)
    long = (*SHORT, "load.rate=50/s", "load.duration=10m")
    with RunningSimulator(model=MODEL, **FAST, error_rate="0.8") as server:
        run = run_gates(tmp_path, "test_whole.py", *unreported(server.url), changes=long)

    (gate,) = evidence_in(tmp_path).runs[0].gates
    assert gate.outcome is Outcome.INCONCLUSIVE, run.stdout
    assert "the load was stopped early" in gate.verdicts[0].reason


def test_a_deployment_that_is_killed_under_load_fails_by_name(tmp_path: Path) -> None:
    """A load of ten minutes ends seconds after the kill, and each gate on it says what happened."""
    (tmp_path / "test_whole.py").write_text(WHOLE)
    long = (*SHORT, "load.rate=50/s", "load.duration=10m")
    with RunningSimulator(model=MODEL, **FAST, crash_after=60) as server:
        run = run_gates(
            tmp_path,
            *unreported(server.url),
            "-k",
            "load_capacity or error_rate or p95 or test_whole",
            changes=(*long, "gates.load_capacity.expected_rate=50/s"),
        )

    assert run.returncode == 1
    gate_run = evidence_in(tmp_path).runs[0]
    assert [gate.outcome for gate in gate_run.gates] == [Outcome.FAIL] * 4
    for gate in gate_run.gates:
        reason = gate.verdicts[0].reason
        assert reason.startswith("an outage: nothing listened from "), reason
        assert "requests in a row failed within" in reason
        assert "Connection refused" in reason
    load = gate_run.loads["load"]
    assert load.total < 1000
    assert load.stopped.startswith("there was an outage, after ")


@pytest.mark.long
@pytest.mark.parametrize(("first_token", "outcome"), [("1m", "pass"), ("5ms", "fail")])
def test_goodput_is_gated_where_the_policy_asks_for_it(
    tmp_path: Path, first_token: str, outcome: str
) -> None:
    """On a busy machine, too: limits far from what is so, and no time that a stall may hide."""
    asked = (f"gates.goodput.ttft={first_token}", "gates.goodput.itl=1m")
    # Of an answer that takes longer than a stall, the stall does not hide that it is late.
    slow, end = ("0.5", "50ms") if outcome == "fail" else (FAST["ttft_seconds"], "1m")
    with RunningSimulator(model=MODEL, **FAST | {"ttft_seconds": slow}) as server:
        run_gates(
            tmp_path,
            *unreported(server.url),
            changes=(
                *SHORT,
                *ONE_IN_FIFTY,
                "gates.goodput.target=95%",
                f"gates.goodput.latency={end}",
                *asked,
            ),
        )

    (gate,) = (g for g in evidence_in(tmp_path).runs[0].gates if g.gate == "goodput")
    assert gate.outcome == outcome
    assert "met every limit (first token below" in gate.verdicts[0].reason
    assert gate.verdicts[0].n > 100


DOUBTFUL = '''
"""A fail that is barely one, among others."""
import pytest
from vllm_rollout.judge.rate import rate_verdict

CLAIM = {"limit": 0.01, "confidence": 0.95}

@pytest.mark.parametrize("failures", [0, 1, 16])
def test_rate(deployment, verdict, failures):
    verdict(rate_verdict(failures, 1000, **CLAIM))
'''


@pytest.mark.parametrize(
    ("method", "outcome"), [("holm", Outcome.INCONCLUSIVE), ("none", Outcome.FAIL)]
)
def test_a_fail_that_may_be_chance_among_several_is_inconclusive(
    tmp_path: Path, method: str, outcome: Outcome
) -> None:
    (tmp_path / "test_doubtful.py").write_text(DOUBTFUL)

    run = run_gates(
        tmp_path,
        "test_doubtful.py",
        *staging("http://127.0.0.1:9"),
        "--policy-set",
        f"family_risk={method}",
        changes=(),
    )

    assert run.returncode == 1
    found = [gate.outcome for gate in evidence_in(tmp_path).runs[0].gates]
    assert found == [Outcome.PASS, Outcome.PASS, outcome]
    assert ("among 3 gates a fail has to be" in run.stdout) == (method == "holm")


def test_too_few_requests_are_inconclusive_and_not_a_pass(tmp_path: Path) -> None:
    with RunningSimulator(model=MODEL, **FAST) as server:
        run = run_gates(tmp_path, *staging(server.url), "-k", "error_rate", changes=SHORT)

    assert run.returncode == 1
    assert "1 inconclusive" in run.stdout
    assert "INCONCLUSIVE" in run.stdout
    (gate,) = evidence_in(tmp_path).runs[0].gates
    assert gate.outcome is Outcome.INCONCLUSIVE
    assert "2,995" in gate.verdicts[0].remedy


def test_a_hung_engine_behind_a_healthy_front_fails_and_gets_no_load(tmp_path: Path) -> None:
    with RunningSimulator(model=MODEL, hang=True) as server:
        run = run_gates(
            tmp_path,
            *staging(server.url),
            changes=(
                *SHORT,
                "gates.health.timeout=1s",
                "gates.inference.timeout=1s",
                "gates.outputs.timeout=1s",
                "gates.response_time.requests=1",
            ),
        )

    assert run.returncode == 1
    found = outcomes(evidence_in(tmp_path))
    assert found["health"] is Outcome.FAIL
    assert {found[gate] for gate in ("inference", "latency")} == {Outcome.INCONCLUSIVE}
    assert "not asked: “Health endpoint returns 200” got no token" in run.stdout
    hung = sample("how-to/simulator.md", "Which dial for which test")
    assert not_printed(hung, run.stdout) == []


def test_nothing_listening_is_named_and_never_passes(tmp_path: Path) -> None:
    run = run_gates(tmp_path, *staging("http://127.0.0.1:9"))

    assert run.returncode == 1
    evidence = evidence_in(tmp_path)
    assert evidence.runs[0].unreachable == "http://127.0.0.1:9"
    assert evidence.outcome is Outcome.INCONCLUSIVE
    assert "http://127.0.0.1:9" in run.stdout


def test_two_models_side_by_side_leave_a_report_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    github_job(monkeypatch, tmp_path)
    with RunningSimulator(model=MODEL, **FAST) as server:
        run = started_gates(
            tmp_path,
            *staging(server.url),
            "--model",
            "other",
            "-n",
            "2",
            changes=(
                *SHORT,
                "load.rate=60/s",
                "gates.error_rate.limit=5%",
                "gates.load_capacity.expected_rate=50/s",
                "gates.load_capacity.unserved=5%",
            ),
        )

    assert outcomes(evidence_in(tmp_path))["latency"] is Outcome.PASS, run.stdout + run.stderr
    assert outcomes(evidence_in(tmp_path, "other"))["health"] is Outcome.FAIL  # not served there
    assert run.returncode == 1
    titles = [line for line in told(tmp_path) if line[0] == "#"]
    assert len(titles) == 2  # of the session, and not of each worker
    assert "### other: staging gates FAIL" in titles
    given = given_outputs(tmp_path / "outputs")
    assert (given["verdict"], given["exit-code"], given["model"]) == ("fail", "1", f"{MODEL},other")
    named = {about["title"].partition(":")[0] for _, about, _ in commands(run.stdout)}
    assert named >= {"other", "other staging"}


@pytest.mark.parametrize("words", ["-n 2 --dist load", "-n auto --dist worksteal", "-n 0"])
def test_under_xdist_a_deployment_gets_one_load(tmp_path: Path, words: str) -> None:
    with RunningSimulator(model=MODEL, **FAST) as server:
        run = started_gates(
            tmp_path,
            *staging(server.url),
            *(*words.split(), "-k", "p95 or error_rate or load_capacity"),
        )
        sent = len(server.truth()["requests"])

    gate_run = evidence_in(tmp_path).runs[0]
    assert {gate.gate for gate in gate_run.gates} == {"latency", "error_rate", "load_capacity"}
    assert sent == gate_run.loads["load"].total, run.stdout
