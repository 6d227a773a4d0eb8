"""What every part of a rollout works with."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.diagnosis import findings_of
from vllm_rollout.model.deployment import Build, Deployment, newest_served
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.evidence import GateRun, Step
from vllm_rollout.model.observation import Observation
from vllm_rollout.observe.prometheus_window import live_metrics
from vllm_rollout.platform.base import NotReadyError, PathErrors, Platform
from vllm_rollout.policy import Policy
from vllm_rollout.report.rows import findings
from vllm_rollout.report.terminal import observation_line, verdict_line
from vllm_rollout.rollout.audit_log import AuditLog, DecisionKind
from vllm_rollout.rollout.clock import Clock
from vllm_rollout.rollout.emergency import Emergency
from vllm_rollout.rollout.gate_runner import GateRunner
from vllm_rollout.rollout.journal import Journal, JournalEntry, Phase, TrafficBefore
from vllm_rollout.rollout.lease import TTL, HeldLease
from vllm_rollout.rollout.model_registry import register
from vllm_rollout.rollout.observer import DeploymentObserver
from vllm_rollout.rollout.passed_revisions import PassedRevisions
from vllm_rollout.rollout.preflight_run import run_preflight
from vllm_rollout.rollout.result import problems_of
from vllm_rollout.rollout.watcher import WatchEnd, Watcher
from vllm_rollout.settings import Settings


class Reporter(Protocol):
    """Shows a rollout to people while it runs."""

    def step(self, step: Step) -> None:
        """Something was done or seen."""

    def gate(self, text: str) -> None:
        """A gate ended."""

    def progress(self, text: str) -> None:
        """Something takes its time: where it stands now."""


@dataclass(slots=True, kw_only=True)
class Context:
    """One rollout's tools and its story so far."""

    run_id: str
    source: Deployment
    target: Deployment
    settings: Settings
    policy: Policy
    clock: Clock
    reporter: Reporter
    runner: GateRunner
    verifier: Callable[[Deployment], GateRun]
    """Asks whether a deployment serves: `verification.verify` with this run's settings."""
    folder: Path
    journal: Journal
    ledger: PassedRevisions
    decisions: AuditLog
    who: str
    """Who runs this, for the decisions."""
    reason: str
    """Why, as they said."""
    notify: Callable[[str, str], None] = lambda _kind, _text: None
    """Tells people, by the policy's ways: a kind of message and its text. It does not raise."""
    undelivered: Callable[[], list[str]] = list
    """Waits for the messages under way, not for long: a line for each that did not arrive."""
    emergency: Emergency | None = None
    """Who has conditions passed over, and why; None where none are."""
    signed: bool = False
    """Whether a person has signed off the evidence that this run goes by."""
    awaits_sign_off: bool = False
    """Whether this run's evidence waits for a person."""
    waits_for: str = ""
    """What else but a person's word the gated build waits for: a soak, a window; or empty."""
    lease_ttl: timedelta = TTL
    held: HeldLease | None = None
    steps: list[Step] = field(default_factory=list)
    runs: list[GateRun] = field(default_factory=list)
    touched: bool = False
    """Whether the target was changed, or was about to be."""
    under_way: bool = False
    """Whether that is what this run ends with: what it undid first, for another, is not."""
    previous: str = ""
    """What served before the change, for people."""

    @property
    def serves_users(self) -> bool:
        """Whether the target is the last environment, the one with users' traffic."""
        return self.target.environment == self.policy.order[-1]

    @property
    def platform(self) -> Platform:
        """Where the releases are."""
        return self.settings.require_platform()

    @property
    def looks(self) -> DeploymentObserver:
        """How this run sees its deployments."""
        return DeploymentObserver(settings=self.settings, policy=self.policy, source=self.source)

    def say(self, title: str, detail: str = "", outcome: Outcome | None = None) -> None:
        """Note a step of the story and show it."""
        step = Step(at=self.clock.now(), title=title, detail=detail, outcome=outcome)
        self.steps.append(step)
        self.reporter.step(step)

    def decide(self, kind: DecisionKind, why: str, *, build: str = "", evidence: str = "") -> None:
        """Tell people of a decision about the target and add it to the model's chain.

        Raises: as `AuditLog.append`, and as the store.
        """
        self.notify(kind, why)
        self.note(kind, why, build=build, evidence=evidence)

    def note(self, kind: DecisionKind, why: str, *, build: str = "", evidence: str = "") -> None:
        """Add a decision that people have been told of to the chain. Raises: as `decide`."""
        self.decisions.append(
            kind,
            model=self.target.model,
            environment=self.target.environment,
            at=self.clock.now(),
            who=self.who,
            why=why,
            run_id=self.run_id,
            build=build,
            evidence=evidence,
        )

    def say_why(self, error: RolloutError) -> None:
        """Add to the story why replicas did not become ready, as far as `error` knows."""
        if isinstance(error, NotReadyError):
            for finding in findings_of(error.symptoms, self.policy, self.target.model):
                self.say(f"{finding.replica}: {finding.cause}", finding.text, Outcome.FAIL)

    def still_ours(self) -> None:
        """Return only if the store says now that this run holds the model's lease.

        Asked before every change, and once more by the platform right before it makes one.

        Raises:
            LeaseLostError: it does not.
            UnreachableError: the store does not answer.
        """
        if self.held is None:
            raise AssertionError("a change without the lease")
        self.held.ensure()

    def recover(self) -> None:
        """Clear what a killed client left of the target half done, and say whose it was."""
        last = self.journal.last
        moves_traffic = last is not None and last.moves_traffic
        for deployment in (self.target, *([self.target.canary] if moves_traffic else [])):
            self.still_ours()
            found = self.platform.recover(deployment, timeout=self.policy.deploy_timeout)
            if found:
                self.say(f"recovered {deployment}", found + (self.held.whose if self.held else ""))

    def register(self) -> str:
        """Tell the model registry what the target serves; what went wrong, or ""."""
        try:
            served = newest_served(self.platform.history(self.target))
            if served is None:
                return f"{self.target} serves nothing that could be registered"
            said = register(self.policy, self.platform, self.target, served)
        except RolloutError as error:
            return f"not registered: {error}"
        if said is not None:
            self.say(f"registered {self.target}", said)
        return ""

    def begin(
        self, build: Build, *, before: int | None, note: str, traffic: TrafficBefore | None = None
    ) -> JournalEntry:
        """Open the journal of a change that is about to begin.

        `before` is the revision to return to, `traffic` what traffic is returned to, if it moves.
        """
        self.still_ours()
        self.touched = self.under_way = True
        self.previous = f"revision {before}" if before else "nothing deployed"
        now = self.clock.now()
        return self.journal.write(
            JournalEntry(
                run_id=self.run_id,
                model=self.target.model,
                source=self.source.environment,
                target=self.target.environment,
                build=build,
                before=before,
                phase=Phase.RAMP,
                note=note,
                holder=self.held.holder if self.held else "",
                started=now,
                updated=now,
                traffic=traffic,
            )
        )

    def take_over(self, entry: JournalEntry) -> JournalEntry:
        """Make an unfinished rollout this run's own: whoever began it can write no more of it.

        Raises: as `still_ours`, and ConflictError where somebody wrote it meanwhile.
        """
        self.still_ours()
        holder = self.held.holder if self.held else ""
        self.touched = self.under_way = True
        self.previous = f"revision {entry.before}" if entry.before else "nothing deployed"
        return self.journal.write(replace(entry, holder=holder, updated=self.clock.now()))

    def gate(self, deployment: Deployment, label: str) -> GateRun:
        """Run all gates of the deployment's environment and add them to the story."""
        settings = self.looks.settings_for(deployment)
        self.say(f"{label} gates of {deployment}", f"at {settings.route_to(deployment)}")
        run = self.runner.run(
            deployment, self._subfolder(f"{label}-gates"), base_url=settings.base_url
        )
        self.runs.append(run)
        self.say(f"{label} gates: {run.outcome}", problems_of(run), run.outcome)
        return run

    def preflight(self, values: Mapping[str, Any]) -> GateRun | None:
        """Check what `values` need of the target before anything else; None if nothing is asked."""
        run = run_preflight(
            self.runner,
            self.platform,
            self.policy,
            self.target,
            values,
            self._subfolder("preflight"),
        )
        if run is not None:
            self.runs.append(run)
            self.say(f"preflight of {self.target}: {run.outcome}", problems_of(run), run.outcome)
        return run

    def verify(self, deployment: Deployment) -> GateRun:
        """Ask whether the deployment serves; add to the story what did not pass.

        Raises:
            CannotVerifyError: the verification itself did not work.
        """
        run = self.verifier(deployment)
        for gate in run.gates:
            self.reporter.gate(verdict_line(gate))
            if gate.outcome is not Outcome.PASS:
                why = "; ".join(each.reason for each in findings(gate) if not each.passed)
                self.say(f"{deployment}: {gate.gate} ({gate.outcome})", why, gate.outcome)
        return run

    def watch(
        self,
        deployment: Deployment,
        duration: timedelta | None,
        *,
        after_promotion: bool = False,
        interrupted: Callable[[], bool] = lambda: False,
        on_sight: Callable[[Observation], None] = lambda _sight: None,
        look: Callable[[], Observation] | None = None,
    ) -> WatchEnd:
        """Watch the deployment's triggers for `duration`; see `Watcher`.

        `look` takes a sight of it, by default through its address.
        """

        before = self.platform.path_errors(deployment)

        def on_tick(elapsed: float, sight: Observation) -> None:
            line = observation_line(elapsed, duration, sight)
            self.reporter.progress(f"watching {deployment}: {line}")
            on_sight(sight)

        with (
            nullcontext(look) if look else self.looks.at(deployment) as see,
            live_metrics(self.policy, deployment) as live,
        ):
            watcher = Watcher(
                policy=self.policy,
                clock=self.clock,
                look=lambda: replace(see(), live=live.newest()),
                live=live.since_the_first,
                interrupted=interrupted,
                on_blind=lambda names: self._blind(
                    deployment, f": {', '.join(names)}{self._why_blind(deployment, before)}"
                ),
                on_unseen=lambda gap: self._blind(deployment, f" from Prometheus: {gap}"),
                on_seen=lambda: self.say("Prometheus tells of everything again", str(deployment)),
                on_tick=on_tick,
            )
            end = watcher.watch(duration, after_promotion=after_promotion)
        if end.unseen:
            title = "the watch ended without all that Prometheus could tell"
            self.say(title, end.unseen, Outcome.INCONCLUSIVE)
        return end

    def _blind(self, deployment: Deployment, what: str) -> None:
        text = f"no data of {deployment}{what}"
        self.say("the watch is blind", text, Outcome.INCONCLUSIVE)
        self.notify("blind", text)

    def _why_blind(self, deployment: Deployment, before: PathErrors) -> str:
        trouble = self.platform.path_errors(deployment).since(before)
        return f"; {trouble}" if trouble else ""

    def _subfolder(self, name: str) -> Path:
        return self.folder / f"{len(self.runs) + 1}-{name}"
