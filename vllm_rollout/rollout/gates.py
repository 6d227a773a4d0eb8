"""Gate runs, preflight checks and verification of one run's deployments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.evidence import GateRun
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.report.rows import findings
from vllm_rollout.report.terminal import verdict_line
from vllm_rollout.rollout.gate_runner import GateRunner, run_preflight
from vllm_rollout.rollout.result import problems_of
from vllm_rollout.rollout.run import Run
from vllm_rollout.rollout.run_log import RunLog
from vllm_rollout.settings import Settings


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

    def run_gates(self, deployment: Deployment) -> GateRun:
        """Run all gates of the deployment's environment and add them to the evidence."""
        label = deployment.environment
        settings = self.settings_for(deployment)
        self.log.log_step(f"{label} gates of {deployment}", f"at {settings.route_to(deployment)}")
        run = self.runner.run(
            deployment, self._subfolder(f"{label}-gates"), base_url=settings.base_url
        )
        self.log.gate_runs.append(run)
        self.log.log_step(f"{label} gates: {run.outcome}", problems_of(run), run.outcome)
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
        for gate in run.gates:
            self.log.reporter.gate(verdict_line(gate))
            if gate.outcome is not Outcome.PASS:
                why = "; ".join(each.reason for each in findings(gate) if not each.passed)
                title = f"{deployment}: {gate.gate} ({gate.outcome})"
                self.log.log_step(title, why, gate.outcome)
        return run

    def _subfolder(self, name: str) -> Path:
        return self.run.folder / f"{len(self.log.gate_runs) + 1}-{name}"
