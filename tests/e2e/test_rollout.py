"""Whole rollouts through the real command lines, on the local platform with real processes.

The first test goes all the way by command lines alone. The others begin with builds in place
(`support.seeded`), and ask in this process what needs none of its own.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from support.ci_jobs import commands, github_job, given_outputs, step_of_action, told
from support.interruptible import interruptible
from support.recorder import Statuspage, recorder
from support.samples import DOCS, not_printed, sample
from support.seeded import passed, staged
from support.short_policy import short_policy
from typer.testing import CliRunner, Result

from vllm_rollout.cli.main import app
from vllm_rollout.judge import Outcome
from vllm_rollout.judge.percentile import percentile_verdict
from vllm_rollout.judge.rate import rate_verdict
from vllm_rollout.model.deployment import Deployment, Replica
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.evidence import Evidence, read_evidence
from vllm_rollout.platform.local import LocalPlatform
from vllm_rollout.settings import Settings, load_settings

MODEL = "llama-2-7b"
KEY = "key-of-this-test-9f2c"
SLOW_RAMP = "ramp=[{replicas: 1, hold: 2m}, {share: 100%, hold: 0s}]"
PRODUCTION = Deployment(MODEL, "production")
POLICY: dict[str, Any] = {
    **short_policy(rate=100, seconds=2, expected=80),
    "platform": "local",
}


@dataclass
class Site:
    """A folder of its own with policy, values, state and reports: the working directory."""

    folder: Path

    def command(self, *words: str) -> list[str]:
        return [str(Path(sys.executable).parent / words[0]), *words[1:]]

    @property
    def environment(self) -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=400,
        )

    def act(self, **inputs: str) -> "subprocess.CompletedProcess[str]":
        """The GitHub action's step, as its runner does it."""
        script, variables = step_of_action(1, inputs)
        (self.folder / "step.sh").write_text(script)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-e", "-o", "pipefail", "step.sh"],
            cwd=self.folder,
            env={**self.environment, **variables, "PATH": path},
            capture_output=True,
            text=True,
            timeout=400,
        )

    def ask(self, *words: str) -> Result:
        """The same command line in this process; an exception that is not expected is raised."""
        arguments = words[1:] if words[0] == "vllm-rollout" else words
        return CliRunner().invoke(app, arguments, catch_exceptions=False)

    def start(self, *words: str) -> AbstractContextManager["subprocess.Popen[str]"]:
        return interruptible(self.command(*words), cwd=self.folder, env=self.environment)

    def values(self, revision: str, **dials: object) -> dict[str, Any]:
        """Values of a simulator that is a build of its own by its model's revision."""
        command = ["{python}", "-m", "vllm_rollout.simulator", "--port", "{port}"]
        command += ["--model", "{model}", "--ttft-seconds=0.01", "--inter-token-seconds=0.001"]
        command += [f"--{name.replace('_', '-')}={value}" for name, value in dials.items()]
        return {"command": command, "model_revision": revision, "secrets": ["VLLM_API_KEY"]}

    def to_staging(self, revision: str, **dials: object) -> None:
        """Have a build in staging that has passed development's gates."""
        staged(self.settings, MODEL, self.values(revision, **dials), self.folder)

    def in_production(self, revision: str) -> None:
        """Have a build in production that has passed the gates there."""
        passed(self.platform, self.settings.policy, PRODUCTION, self.values(revision))

    def write_the_documented_gates(self) -> None:
        """Write those of docs/how-to.md into my_gates, for a machine that may be slow."""
        (self.folder / "my_gates").mkdir()
        page = (DOCS / "how-to.md").read_text(encoding="utf-8")
        for name, text in re.findall(
            r"`my_gates/(test_\w+\.py)`.*?```python\n(.*?)```", page, re.DOTALL
        ):
            written = text.replace("limit_seconds=0.5", "limit_seconds=30")
            (self.folder / "my_gates" / name).write_text(written)

    def evidence(self) -> Evidence:
        files = self.folder.glob(f"reports/{MODEL}/*/evidence.json")
        return read_evidence(max(files, key=lambda file: file.stat().st_mtime_ns))

    def record(self) -> Path:
        """The only record of a deployment."""
        (found,) = (self.folder / "deployments").glob(f"{MODEL}-*.md")
        return found

    def signal_in_the_ramp(self, number: signal.Signals, *, expect: int) -> list[str]:
        """Start a rollout with a long first step and end it there; what it printed."""
        printed = []
        with self.start("gate-and-promote", MODEL, "--set", SLOW_RAMP) as run:
            for line in run.stdout or ():
                printed.append(line)
                # An interrupt in the middle of a print may repeat the line: one signal is enough.
                if "is ready, 1 of 2 replicas on build" in line and printed.count(line) == 1:
                    run.send_signal(number)
        assert run.returncode == expect, "".join(printed)
        return printed

    def files_with_the_key(self) -> list[str]:
        """Files anywhere below that hold the bearer key.

        Another process reads them: plain reads of the state file here would drop SQLite's locks.
        """
        found = subprocess.run(
            ["grep", "-rlF", KEY, str(self.folder)], capture_output=True, text=True
        )
        assert found.returncode in (0, 1), found.stderr
        return found.stdout.splitlines()

    @property
    def settings(self) -> Settings:
        return load_settings(
            policy_file=str(self.folder / "rollout.yaml"),
            overrides={"local.state": str(self.folder / ".vllm-rollout")},
        )

    @property
    def platform(self) -> LocalPlatform:
        platform = self.settings.reader()
        assert isinstance(platform, LocalPlatform)
        return platform

    def production(self) -> list[Replica]:
        return list(self.platform.replicas(PRODUCTION))

    def serving(self) -> str:
        """The model revision that production answers with, asked of the release's history."""
        history = self.platform.history(PRODUCTION)
        values = self.platform.values(PRODUCTION, history[-1].number)
        return str(values["model_revision"])


@contextmanager
def new_site(
    folder: Path, policy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    """A site whose processes end with the block."""
    (folder / "rollout.yaml").write_text(yaml.safe_dump(policy))
    for name in [name for name in os.environ if name.startswith("VLLM_")]:
        monkeypatch.delenv(name)
    for name in ("VLLM_ROLLOUT_API_KEY", "VLLM_API_KEY"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.chdir(folder)
    site = Site(folder)
    yield site
    site.platform.stop_all()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with new_site(tmp_path, POLICY, monkeypatch) as site:
        yield site


@pytest.fixture
def page(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Statuspage]:
    """The status page of the site."""
    monkeypatch.setenv("STATUSPAGE_KEY", KEY)
    page = Statuspage()
    with recorder() as server:
        server.answer = page
        channel = {
            "name": "status", "kind": "statuspage", "page_id": "abc", "url": server.url,
            "key_env": "STATUSPAGE_KEY",
        }  # fmt: skip
        policy = {**POLICY, "notifications": {"channels": [channel]}}
        (site.folder / "rollout.yaml").write_text(yaml.safe_dump(policy))
        yield page


def test_promote_then_break_production_and_get_the_old_build_back(
    site: Site, page: Statuspage, monkeypatch: pytest.MonkeyPatch
) -> None:
    github_job(monkeypatch, site.folder)
    site.in_production("one")
    (site.folder / "two.yaml").write_text(yaml.safe_dump(site.values("two")))
    lines = []
    done = site.act(model=MODEL, values="two.yaml", to="staging")
    assert done.returncode == ExitCode.OK, done.stdout + done.stderr
    lines.append(done.stdout)
    with site.start("gate-and-promote", MODEL) as rollout:
        for line in rollout.stdout or ():
            lines.append(line)
            if "watching production/llama-2-7b for" in line:
                for replica in site.production():
                    httpx.patch(
                        f"{replica.address}/simulator/dials", json={"error_rate": 0.5}
                    ).raise_for_status()
        code = rollout.wait(60)

    assert code == ExitCode.ROLLED_BACK, "".join(lines)
    assert site.serving() == "one"
    evidence = site.evidence()
    assert evidence.outcome is Outcome.FAIL
    assert "error rate" in evidence.conclusion
    (incident,) = page.incidents
    assert incident["status"] == "completed"
    assert incident["updates"][0] == f"Promotion of {MODEL} to production begins"
    assert incident["updates"][-1] == f"{MODEL} in production is rolled back"
    record = site.record()
    assert "error rate" in record.read_text()
    undo = f"vllm-rollout rollback {MODEL} -e production --to 1"
    assert f"- Rollback: {undo}" in record.read_text()
    link = re.search(r"- Evidence: \[(.*)\]\((.*)\)", record.read_text())
    assert link is not None
    assert read_evidence(record.parent / link[2]).digest == link[1]
    folder = site.folder / "reports" / MODEL / evidence.run_id
    assert "ROLLED BACK" in (folder / "report.html").read_text()
    assert "ROLLED BACK" in (site.folder / "reports" / "index.html").read_text(encoding="utf-8")
    # By the two rollouts alone, and not by the gates that they ran.
    passed, _, failed, end = told(site.folder)
    assert (passed, failed) == (f"### {MODEL}: rollout PASS", f"### {MODEL}: rollout ROLLED BACK")
    assert end.startswith("**ROLLED BACK** (exit code 5): ")
    given = given_outputs(site.folder / "outputs")
    assert (given["verdict"], given["environment"]) == ("fail", "production")
    assert given["evidence-digest"] == evidence.digest
    assert given["report-path"] == f"reports/{MODEL}/{evidence.run_id}/report.html"
    (first, *_) = commands("".join(lines))
    assert (first[0], first[1]["file"]) == ("error", "rollout.yaml")
    assert "error rate" in first[2]

    status = site.run("vllm-rollout", "status", MODEL)
    assert status.returncode == 0
    assert "2/2" in status.stdout
    (found,) = json.loads(site.ask("vllm-rollout", "status", "--json").stdout)
    assert (found["model"], found["under_way"]) == (MODEL, None)
    production = found["environments"][2]
    assert [replica["ready"] for replica in production["replicas"]] == [True, True]
    assert production["build"]["model_revision"] == "one"
    assert production["evidence"].startswith("sha256:")
    assert site.files_with_the_key() == []
    history = site.ask("vllm-rollout", "history", MODEL, "-e", "production").stdout
    printed = "".join([*lines, status.stdout, history])
    for heading in (
        "Deploy to development",
        "Gate development, promote to staging",
        "3. Break production",
        "4. Read the history",
    ):
        assert not_printed(sample("tutorial.md", heading), printed) == []


@pytest.mark.long
def test_a_person_signs_off_what_then_goes_to_production(site: Site) -> None:
    site.to_staging("good")
    site.write_the_documented_gates()
    asked = ("--set", "environments.staging.sign_off.valid=48h")
    pending = site.run("gate-and-promote", MODEL, "--gates", "my_gates", *asked)
    assert pending.returncode == ExitCode.INCONCLUSIVE, pending.stdout
    last = pending.stdout.splitlines()[-1]
    assert last.startswith(f"sign it off: vllm-rollout sign-off {MODEL} --evidence ")
    assert last.endswith(shlex.join(asked))
    digest = last.partition("--evidence ")[2].split()[0]
    assert site.evidence().digest.startswith(f"sha256:{digest}")
    assert f"--evidence {digest} --as NAME" in max(
        site.folder.glob(f"reports/{MODEL}/*/report.html"), key=lambda f: f.stat().st_mtime_ns
    ).read_text(encoding="utf-8")

    rules = "minimum: 24h, maximum: 48h, observed_by: samples, grace: 2m, max_gap: 15m"
    soak = f"environments.staging.soak={{{rules}}}"
    looked = site.ask("vllm-rollout", "soak", MODEL, "--once", "--set", soak)
    assert looked.exit_code == 0, looked.stdout
    assert "of 24h since" in looked.stdout

    for wrong in ("000000000000", "xyz"):
        words = ("vllm-rollout", "sign-off", MODEL, "--evidence", wrong, "--as", "Grace", *asked)
        assert site.ask(*words).exit_code == ExitCode.USAGE
    words = ("vllm-rollout", "sign-off", MODEL, "--evidence", digest, "--as", "Grace", *asked)
    signed = site.ask(*words)
    assert signed.exit_code == 0, signed.stdout
    assert "signed off by Grace" in signed.stdout

    words = ("--gates", "my_gates", "--reason", "first of all", *asked)
    done = site.run("gate-and-promote", MODEL, *words)
    assert done.returncode == ExitCode.OK, done.stdout
    assert "staging gates are not run again" in done.stdout
    assert [r.ready for r in site.production()] == [True, True]
    assert "Reason: first of all" in site.record().read_text()
    assert "- Rollback: none: nothing was deployed there before" in site.record().read_text()
    status = site.ask("vllm-rollout", "status", MODEL).stdout
    # Of a watch by other numbers.
    after_promotion = [
        percentile_verdict([0.1] * 160, percentile=95, limit_seconds=3, confidence=0.95).reason,
        rate_verdict(0, 160, limit=0.001, confidence=0.95).reason,
        "01:24:13  P95 latency after promotion: pass",
        "01:24:13  error rate after promotion: inconclusive",
    ]
    printed = "\n".join([pending.stdout, done.stdout, status, *after_promotion])
    assert not_printed(sample("how-to.md", "Write your own gate"), printed) == []
    for heading in (
        "Gate staging",
        "A person signs it off",
        "The ramp",
        "Production gates, then the watch",
        "2. Look at what it left",
    ):
        assert not_printed(sample("tutorial.md", heading), printed) == []


@pytest.mark.parametrize(
    ("mount", "trouble"),
    [
        (
            "mount -t tmpfs -o size=4k full reports && ! head -c 8k /dev/zero > reports/full",
            "No space",
        ),
        ("mount --bind reports reports && mount -o remount,bind,ro reports", "Read-only"),
    ],
    ids=["full disk", "read-only"],
)
def test_without_room_for_reports_nothing_is_promoted_and_the_evidence_is_in_the_store(
    site: Site, mount: str, trouble: str
) -> None:
    site.to_staging("one")
    (site.folder / "reports").mkdir()
    run = shlex.join(site.command("gate-and-promote", MODEL))
    # A mount that only this run sees, and that is gone with it.
    shell = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*shell, "mount -t tmpfs none /mnt"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount anything")

    done = subprocess.run(
        [*shell, f"{{ {mount}; }} && exec {run}"],
        cwd=site.folder,
        env=site.environment,
        capture_output=True,
        text=True,
        timeout=400,
    )

    assert done.returncode == ExitCode.INCONCLUSIVE, done.stdout + done.stderr
    assert "cannot be written, where the gates leave their evidence: [Errno" in done.stdout
    assert trouble in done.stdout
    assert "the report could not be written, the evidence is in the platform's store" in done.stdout
    assert site.production() == []
    history = site.ask("vllm-rollout", "history", MODEL, "--json")
    assert json.loads(history.stdout)["decisions"][-1]["evidence"]


@pytest.mark.long
def test_nothing_reaches_production_unless_staging_passes(site: Site) -> None:
    site.to_staging("one")

    away = site.run("gate-and-promote", MODEL, "--base-url", "http://127.0.0.1:9")
    assert away.returncode == ExitCode.UNREACHABLE
    assert "http://127.0.0.1:9" in away.stdout

    for replica in site.platform.replicas(Deployment(MODEL, "staging")):
        dials = {"ttft_seconds": "0.8"}
        httpx.patch(f"{replica.address}/simulator/dials", json=dials).raise_for_status()
    strict = "environments.staging.gates.latency.limit=500ms"
    resources = ["environments.staging.gates.queue.limit=100000"]
    resources += ["environments.staging.gates.gpu_memory.limit=90%"]
    sets = [word for change in (strict, *resources) for word in ("--set", change)]
    slow = site.run("gate-and-promote", MODEL, *sets)
    assert slow.returncode == ExitCode.GATE_FAILED, slow.stdout + slow.stderr
    assert "latency (fail)" in slow.stdout
    gates = {gate.gate: gate for gate in site.evidence().runs[0].gates}
    assert gates["queue"].outcome is Outcome.PASS, gates["queue"]
    (gpus,) = gates["gpu_memory"].verdicts
    assert gpus.outcome is Outcome.INCONCLUSIVE
    assert ("local.gpus" in gpus.reason, "DCGM" in gpus.remedy) == (True, True)

    assert not site.production()
    assert not (site.folder / "deployments").exists()


@pytest.mark.long
def test_a_standing_watch_gets_the_old_build_back_and_ends_by_sigterm(site: Site) -> None:
    for revision in ("one", "two"):
        site.in_production(revision)
    printed = []
    with site.start("vllm-rollout", "watch", MODEL) as watch:
        for line in watch.stdout or ():
            printed.append(line)
            if f"watching production/{MODEL}, revision 2" in line:
                for replica in site.production():
                    httpx.patch(
                        f"{replica.address}/simulator/dials", json={"error_rate": 1.0}
                    ).raise_for_status()
            if f"watching production/{MODEL}, revision 3" in line:
                watch.send_signal(signal.SIGTERM)
        code = watch.wait(60)

    assert code == 0, "".join(printed)
    assert any("a trigger fired" in line for line in printed)
    assert "was asked to end" in printed[-1]
    assert site.serving() == "one"
    assert site.evidence().exit_code == ExitCode.ROLLED_BACK
    assert site.record()


@pytest.mark.long
def test_an_interrupted_and_a_killed_ramp_are_undone_by_the_next_run(site: Site) -> None:
    site.in_production("one")
    site.to_staging("two")

    printed = site.signal_in_the_ramp(signal.SIGINT, expect=ExitCode.INTERRUPTED)
    assert "1 of 2 replicas on build" in printed[-1], "".join(printed)
    seen = []
    with site.start("vllm-rollout", "top", MODEL, "--json", "--interval", "1s") as top:
        for line in top.stdout or ():
            seen.append(json.loads(line))
            top.send_signal(signal.SIGINT)
    assert top.returncode == ExitCode.OK
    (model,) = seen[0]["models"]
    sides = {(s["environment"], s["side"]): s for s in model["sides"]}
    assert {key: side["revision"] for key, side in sides.items() if key[0] == "production"} == {
        ("production", "baseline"): 1,
        ("production", "canary"): 2,
    }
    figures = sides["production", "canary"]["figures"]
    assert (figures["ready"]["value"], figures["queue"]["value"]) == (1, 0)
    assert figures["queue"]["source"].startswith("/metrics of 1 ")
    assert figures["queue"]["age_seconds"] < 60
    assert figures["gpu_memory"]["unknown"]

    printed = site.signal_in_the_ramp(signal.SIGKILL, expect=-signal.SIGKILL)
    assert any("rolling production/llama-2-7b back to revision" in line for line in printed)

    run = site.run("gate-and-promote", MODEL)
    assert run.returncode == ExitCode.OK, run.stdout + run.stderr
    shown = sample("how-to/operate.md", "Go on after a killed run")
    # Whether it has to wait for the lease is a matter of time.
    assert not_printed([line for line in shown if "waiting" not in line], run.stdout) == []
    assert site.serving() == "two"
    assert [r.ready for r in site.production()] == [True, True]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gate-and-promote", "Llama 2"), "DNS-1123"),
        (("gate-and-promote", MODEL, "--to", "prod"), "production"),
        (("gate-and-promote", MODEL, "--set", "watch.duratoin=1m"), "did you mean"),
        (("gate-and-promote", MODEL, "--emergency", "--as", "Ada"), "requires a name and a reason"),
        (("gate-and-promote", MODEL, "--emergency", "--reason", "x"), "requires a name"),
        (("vllm-rollout", "soak", MODEL), "has no soak in the policy"),
        (("vllm-rollout", "deploy", MODEL, "-e", "production", "-f", "x.yaml"), "not skipped"),
        (("vllm-rollout", "deploy", MODEL, "-f", "missing.yaml"), "missing.yaml"),
    ],
)
def test_wrong_words_are_usage_errors_that_teach(
    site: Site, words: tuple[str, ...], message: str
) -> None:
    run = site.ask(*words)

    assert run.exit_code == ExitCode.USAGE, run.output
    assert message in run.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gate-and-promote", MODEL), "not deployed in staging"),
        (("vllm-rollout", "rollback", MODEL), "nothing is deployed as"),
    ],
)
def test_a_usage_error_of_the_installed_commands_has_no_traceback(
    site: Site, words: tuple[str, ...], message: str
) -> None:
    run = site.run(*words)

    assert run.returncode == ExitCode.USAGE, run.stdout + run.stderr
    assert message in run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr
