"""Gates of one run's deployments: run with pytest in a process of their own, and read back."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import yaml

from vllm_rollout.gate_runs import ASKED_BEFORE
from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import DeployError, ExitCode, RolloutError, UsageError
from vllm_rollout.model.evidence import GateRun, read_evidence, write_evidence
from vllm_rollout.model.units import format_share
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.policy import Policy
from vllm_rollout.report.rows import findings
from vllm_rollout.report.terminal import by_gate, gate_line
from vllm_rollout.resources import GATES
from vllm_rollout.rollout.run import Run, RunLog, problems_of
from vllm_rollout.settings import Settings

_POLL_SECONDS = 0.2
_ROOM_BYTES = 65_536
_END_SECONDS = 60.0
_PREFLIGHT = "preflight"
_WHAT_RUNS = ("revision", "build", "revision_created")


class GatesCrashedError(RolloutError):
    """The gates ended without evidence; nothing is known of the deployment."""

    exit_code = ExitCode.INCONCLUSIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRunner:
    """Runs gates with the options of the rollout that asks for them."""

    options: Sequence[str]
    """pytest options that name policy, platform and so on, the same for every run."""
    own_gates: Sequence[Path] = ()
    """The team's own gates, run beside the suite's."""
    on_event: Callable[[str, str], None]
    """Called with each event as it happens: its kind (`gate`, `progress`) and its text."""

    def run(
        self,
        deployment: Deployment,
        folder: Path,
        *,
        only: Sequence[str] = (),
        base_url: str | None = None,
        options: Sequence[str] = (),
        confidence: float | None = None,
    ) -> GateRun:
        """Run the deployment's gates, or `only` some, leaving log and evidence in `folder`.

        They send requests to `base_url`, by default to the platform's address. `options` are
        further pytest options of this run, `confidence` a higher one than the policy's.

        Raises:
            GatesCrashedError: pytest ended without usable evidence, or could not be run.
        """
        if confidence is not None:
            options = (*options, "--confidence", format_share(confidence))
        try:
            return self._run(deployment, folder, only, base_url, options)
        except OSError as error:
            raise _not_run(error, folder) from error

    def _run(
        self,
        deployment: Deployment,
        folder: Path,
        only: Sequence[str],
        base_url: str | None,
        options: Sequence[str],
    ) -> GateRun:
        folder.mkdir(parents=True, exist_ok=True)
        evidence_file, events_file = folder / "evidence.json", folder / "events.jsonl"
        # Gates that are asked again leave nothing of the time before.
        evidence_file.unlink(missing_ok=True)
        events_file.write_text("")
        paths = [str(GATES / f"test_{gate}.py") for gate in only] or [
            str(path) for path in (GATES, *self.own_gates)
        ]
        command = [sys.executable, "-m", "pytest", *paths, "-m", deployment.environment]
        command += ["--model", deployment.model, "--evidence", str(evidence_file), *self.options]
        command += options
        # Plugins that gates do not use, and that take long to start where they are installed.
        for plugin in ("cacheprovider", "xdist", "hypothesispytest"):
            command += ["-p", f"no:{plugin}"]
        command += ["-q", "-o", "addopts="]
        command += ["--base-url", base_url] if base_url else []
        # A pipe is the gates' lifeline: when this process dies, however it dies, its end closes and
        # the gates end themselves and their load.
        lifeline, ours = os.pipe()
        environment = {
            **os.environ,
            "VLLM_ROLLOUT_EVENTS": str(events_file),
            "VLLM_ROLLOUT_LIFELINE": str(lifeline),
        }
        for inherited in ("PYTEST_ADDOPTS", "VLLM_ROLLOUT_BASE_URL", "VLLM_ROLLOUT_MODEL"):
            environment.pop(inherited, None)
        with (
            (folder / "pytest.log").open("w", encoding="utf-8") as log,
            events_file.open(encoding="utf-8") as events,
            subprocess.Popen(  # noqa: S603 - our own interpreter, argv list, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[lifeline],
            ) as process,
        ):
            os.close(lifeline)
            try:
                self._follow(process, events)
            finally:
                os.close(ours)
                _end(process)
        return self._read(evidence_file, folder / "pytest.log", process.returncode)

    def _follow(self, process: "subprocess.Popen[bytes]", events: IO[str]) -> None:
        unfinished = ""
        running = True
        while running:
            try:
                process.wait(_POLL_SECONDS)
                running = False
            except subprocess.TimeoutExpired:
                pass
            *lines, unfinished = (unfinished + events.read()).split("\n")
            for line in lines:
                event = json.loads(line)
                self.on_event(event["event"], event["text"])

    def _read(self, evidence_file: Path, log: Path, status: int) -> GateRun:
        if not evidence_file.exists():
            check_room(evidence_file.parent)  # a full disk has no room for last words either
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise GatesCrashedError(
                f"the gates ended (exit {status}) without evidence:\n{tail}",
                remedy=f"The whole output is in {log}.",
            )
        run = read_evidence(evidence_file).runs[0]
        if status != 0 and run.outcome is Outcome.PASS:
            raise GatesCrashedError(
                f"every gate passed and pytest ended with {status}: something else failed",
                remedy=f"The whole output is in {log}.",
            )
        return run


def _not_run(error: OSError, folder: Path) -> GatesCrashedError:
    return GatesCrashedError(
        f"the gates could not be run: {error}",
        remedy=f"They need {folder}, with room on its disk: see --report-dir.",
    )


def run_preflight(
    runner: GateRunner,
    platform: ReleaseReader,
    policy: Policy,
    deployment: Deployment,
    values: Mapping[str, Any],
    folder: Path,
) -> GateRun | None:
    """Check what the build of `values` needs in `deployment`; the run is about that build.

    None where the policy asks for no check, or the platform has nothing to check beforehand.

    Raises:
        UsageError: the values make no build, and every check passed all the same.
        GatesCrashedError: pytest ended without usable evidence.
    """
    checks = policy.preflight_of(deployment.environment)
    if not checks:
        return None
    capacity = policy.environments[deployment.environment].replicas
    if platform.preflight(deployment, values, capacity=capacity) is None:
        return None
    build = problem = None
    try:
        build = platform.build(deployment, dict(values))
    except (UsageError, DeployError) as error:
        problem = error  # the checks say it better, with all else that is wrong
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))
    run = runner.run(deployment, folder, only=(_PREFLIGHT,), options=("--values", str(file)))
    if problem is not None and run.outcome is Outcome.PASS:
        raise problem
    expected = tuple(f"{_PREFLIGHT}-{check}" for check in checks)
    return replace(run, expected=expected, build=build, revision=None)


def check_room(folder: Path) -> None:
    """Return if a file can be written there.

    Raises:
        OSError: it cannot.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0" * _ROOM_BYTES)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the process; kill it when the closed lifeline does not end it."""
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """Runs gates and checks, and adds what they found to the log.

    `settings_for` gives the settings that hold a deployment's address; `verifier` checks that a
    deployment serves (`verification.verify`).
    """

    run: Run
    platform: ReleaseReader
    runner: GateRunner
    verifier: Callable[[Deployment], GateRun]
    settings_for: Callable[[Deployment], Settings]
    log: RunLog

    def run_gates(self, deployment: Deployment, *, confidence: float | None = None) -> GateRun:
        """Run all gates of the deployment's environment and add them to the evidence.

        `confidence` is that of gates that may be asked again.
        """
        label = deployment.environment
        settings = self.settings_for(deployment)
        self.log.log_step(f"{label} gates of {deployment}", f"at {settings.route_to(deployment)}")
        run = self.runner.run(
            deployment,
            self._subfolder(f"{label}-gates"),
            base_url=settings.base_url,
            confidence=confidence,
        )
        self.log.gate_runs.append(run)
        self.log.log_step(f"{label} gates: {run.outcome}", problems_of(run), run.outcome)
        return run

    def run_again(self, deployment: Deployment, before: GateRun, *, confidence: float) -> GateRun:
        """Run those gates again that are inconclusive in `before`, in whose place they come.

        They go by the load of `before`; see `latency_before`. Where `before` could not read what
        runs, it is what they read.
        """
        asked = {g.gate for g in before.gates if g.outcome is Outcome.INCONCLUSIVE}
        asked |= set(before.missing)
        folder = self._subfolder(f"{deployment.environment}-gates-again")
        known = all((GATES / f"test_{gate}.py").exists() for gate in asked)
        try:
            write_evidence(self.log.evidence(before.started, None), folder / ASKED_BEFORE)
        except OSError as error:
            raise _not_run(error, folder) from error
        again = self.runner.run(
            deployment,
            folder,
            only=sorted(asked) if known else (),
            base_url=self.settings_for(deployment).base_url,
            confidence=confidence,
        )
        ran = {g.gate for g in again.gates}
        run = replace(
            before,
            gates=(*(g for g in before.gates if g.gate not in ran), *again.gates),
            loads={**before.loads, **again.loads},
            changed=again.changed,
            unread=again.unread,
            **{name: getattr(again, name) for name in _WHAT_RUNS if getattr(before, name) is None},
            finished=again.finished,
        )
        self.log.gate_runs[-1] = run
        label = deployment.environment
        self.log.log_step(f"{label} gates again: {run.outcome}", problems_of(run), run.outcome)
        return run

    def preflight(self, values: Mapping[str, Any]) -> GateRun | None:
        """Check the target for what `values` need; None if the policy asks for no check."""
        target = self.run.target
        run = run_preflight(
            self.runner,
            self.platform,
            self.run.policy,
            target,
            values,
            self._subfolder("preflight"),
        )
        if run is not None:
            self.log.gate_runs.append(run)
            self.log.log_step(
                f"preflight of {target}: {run.outcome}", problems_of(run), run.outcome
            )
        return run

    def verify(self, deployment: Deployment) -> GateRun:
        """Verify that the deployment serves; log each check that did not pass.

        Raises:
            CannotVerifyError: the verification itself did not work.
        """
        run = self.verifier(deployment)
        for results in by_gate(run):
            self.log.reporter.gate(gate_line(results))
        for gate in run.gates:
            if gate.outcome is not Outcome.PASS:
                why = "; ".join(each.reason for each in findings(gate) if not each.passed)
                title = f"{deployment}: {gate.gate} ({gate.outcome})"
                self.log.log_step(title, why, gate.outcome)
        return run

    def _subfolder(self, name: str) -> Path:
        return self.run.folder / f"{len(self.log.gate_runs) + 1}-{name}"
