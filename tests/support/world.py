"""A simulated world for the engine: gates and people that a test turns by hand, on `simulated`.

Everything else is the real engine.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from support import signing
from support.crashing import Killed
from support.simulated import LONG_AGO, FakeClock, SimulatedPlatform

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.model.deployment import Build, Deployment, Revision, RevisionStatus, images_of
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.evidence import Evidence, GateResult, GateRun, Step
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.platform.writer import Store
from vllm_rollout.policy import Policy, load_policy
from vllm_rollout.rollout.audit_log import AuditLog
from vllm_rollout.rollout.evidence_store import PassedRevisions, store_evidence, stored_evidence
from vllm_rollout.rollout.journal import Journal, JournalEntry
from vllm_rollout.rollout.leased_run import RunTools, assemble
from vllm_rollout.rollout.run import Emergency, Run
from vllm_rollout.rollout.sign_offs import SignOff, SignOffs
from vllm_rollout.rollout.verification import VERIFY_GATES
from vllm_rollout.settings import Settings

MODEL = "llama-2-7b"
DEVELOPMENT = Deployment(MODEL, "development")
STAGING = Deployment(MODEL, "staging")
PRODUCTION = Deployment(MODEL, "production")
QUICK: dict[str, Any] = {
    "ramp": [{"replicas": 1, "hold": "10s"}, {"share": "100%", "hold": "0s"}],
    "watch.duration": "20s",
    "watch.slo.within": "10s",
    "watch.error_spike": {"within": "10s", "for": "5s"},
    "triggers.error_rate.for": "5s",
    "triggers.outage.for": "5s",
}
"""A policy by which a rollout takes a minute of the world's clock, and few observations."""

RAMP = ["apply production 1/4", "apply production 2/4", "apply production 4/4"]
"""The changes of production by which a rollout reaches all of its four replicas."""

SIGN_OFF = "environments.staging.sign_off"

BY_TRAFFIC: dict[str, Any] = {
    **QUICK,
    "canary.by": "traffic",
    "ramp": [{"share": "25%", "hold": "3m"}, {"share": "100%", "hold": "0s"}],
    "canary.extend": "3m",
}
"""The same, by traffic weight, with a hold long enough to compare the canary with the baseline."""


class ScriptedGates:
    """Gates that end as the test says; what they say is about the build that really serves."""

    def __init__(self, platform: Any, clock: Any) -> None:
        self.platform, self.clock = platform, clock
        self.outcomes: dict[str, Outcome] = {}
        self.unreachable = ""
        self.policy_digest = "sha256:0"
        self.own_gates: Sequence[Path] = ()
        self.during: Any = None
        self.confidences: list[float | None] = []

    def run(
        self,
        deployment: Deployment,
        folder: Path,
        *,
        only: Sequence[str] = (),
        base_url: str | None = None,
        confidence: float | None = None,
    ) -> GateRun:
        self.confidences.append(confidence)
        if self.during:
            self.during(deployment)
        return self._run(deployment, deployment.environment, only or ("health",))

    def verify(self, deployment: Deployment) -> GateRun:
        """The verification, which is no gate run."""
        return self._run(deployment, "verify", VERIFY_GATES)

    def _run(self, deployment: Deployment, kind: str, gates: Sequence[str]) -> GateRun:
        history = self.platform.history(deployment)
        outcome = self.outcomes.get(kind, Outcome.PASS)
        now = self.clock.now()
        return GateRun(
            deployment=deployment,
            base_url=f"http://{deployment.release}",
            platform="simulated",
            revision=history[-1].number if history else None,
            build=history[-1].build if history else None,
            revision_created=history[-1].created if history else None,
            policy_digest=self.policy_digest,
            started=now,
            finished=now,
            expected=tuple(gates),
            gates=tuple(
                GateResult(
                    gate=gate,
                    item=gate,
                    title=gate,
                    verdicts=()
                    if self.unreachable
                    else (Verdict(outcome=outcome, reason="the test says so"),),
                    error="no answer" if self.unreachable else "",
                    unreachable=self.unreachable,
                    started=now,
                    duration_seconds=0.0,
                )
                for gate in gates
            ),
            loads={},
            images=images_of(self.platform.replicas(deployment)),
        )


class ListReporter:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def step(self, step: Step) -> None:
        self.steps.append(step)

    def gate(self, text: str) -> None: ...

    def progress(self, text: str) -> None: ...


def scripted_tools(run: Run, settings: Settings, gates: ScriptedGates, **more: Any) -> RunTools:
    """The tools of `run`, whose gates and verification are the test's; `more` is for `assemble`."""
    runner: Any = gates
    reporter = more.pop("reporter", None) or ListReporter()
    return assemble(run, settings, reporter=reporter, runner=runner, verifier=gates.verify, **more)


UNATTENDED = {
    "environments.staging.soak.observed_by": "age",
    SIGN_OFF: False,
    "windows.whole_ramp": False,
}
"""Of the conditions, those that tests of other things do without."""


def passing_evidence(
    deployment: Deployment,
    at: datetime,
    *,
    revision: int = 1,
    build: Build | None = None,
    **more: Any,
) -> Evidence:
    """Evidence of one run there, whose only gate, `health`, passed; `more` is of the evidence."""
    gate = GateResult(
        gate="health", item="health", title="health", started=at, duration_seconds=0.0,
        verdicts=(Verdict(outcome=Outcome.PASS, reason="the test says so"),),
    )  # fmt: skip
    run = GateRun(
        deployment=deployment, base_url="", platform="simulated", revision=revision, build=build,
        policy_digest="sha256:0", started=at, finished=at, expected=("health",), gates=(gate,),
        loads={},
    )  # fmt: skip
    return Evidence(
        run_id=f"of {deployment.release}", model=deployment.model, suite_version="1", started=at,
        finished=at, runs=(run,), **more,
    )  # fmt: skip


def passed_before(store: Store, deployment: Deployment, revision: Revision) -> None:
    """Leave what a run leaves by which `revision` passed its gates, the day that it was made."""
    evidence = passing_evidence(
        deployment, revision.created, revision=revision.number, build=revision.build
    )
    PassedRevisions(store).passed(deployment, revision, store_evidence(store, evidence))


@dataclass
class World:
    """One simulated world, and `tools()` for each run in it."""

    tmp_path: Path
    clock: FakeClock
    platform: SimulatedPlatform
    gates: ScriptedGates
    probes: Any
    overrides: dict[str, Any] = field(default_factory=lambda: dict(UNATTENDED))
    canary_probes: Any = None
    """What the canary answers; as production does where this is None."""
    renews_too: Callable[[], None] | None = None

    def pass_development(self, build: Build) -> None:
        """Note that `build` has passed its gates in development."""
        revision = Revision(
            number=len(self.platform.store.keys(f"passed/{DEVELOPMENT.release}/")) + 1,
            build=build,
            status=RevisionStatus.DEPLOYED,
            created=self.clock.now() - LONG_AGO,
            description="",
            replicas=1,
            capacity=1,
        )
        passed_before(self.platform.store, DEVELOPMENT, revision)

    @contextmanager
    def in_between(self, *, frozen: bool) -> Iterator[None]:
        """Another run has its turn in the middle of one, which renews its lease unless `frozen`."""
        meanwhile, guard = self.clock.meanwhile, self.platform.guarded_by
        self.renews_too = None if frozen else meanwhile
        yield
        self.renews_too = None
        self.clock.meanwhile, self.platform.guarded_by = meanwhile, guard

    def tools(
        self,
        platform: Any = None,
        *,
        source: Deployment = STAGING,
        target: Deployment = PRODUCTION,
        emergency: Emergency | None = None,
        again: str = "",
        **more: Any,
    ) -> RunTools:
        """A run's own tools; `platform` stands for the world's, as something around it.

        `more` is given to `assemble`, in place of the world's own.
        """
        policy = _policy(json.dumps(self.overrides, sort_keys=True))
        where = platform or self.platform
        self.gates.policy_digest = policy.digest
        run = Run(
            id=f"run-{len(self.platform.calls)}-{len(self.platform.store.entries)}",
            source=source,
            target=target,
            policy=policy,
            who="ada",
            reason="a test",
            folder=self.tmp_path,
            emergency=emergency,
            again=again,
        )
        settings = Settings(policy=policy, platform=where, base_url=None, report_dir=self.tmp_path)
        tools = scripted_tools(run, settings, self.gates, **{"clock": self.clock, **more})

        def renew() -> None:
            if tools.releases.lease:
                with suppress(RolloutError, Killed):
                    tools.releases.lease.renew()

        others = self.renews_too

        def meanwhile() -> None:
            renew()
            if others:
                others()

        self.clock.meanwhile = meanwhile
        return tools

    def journal(self) -> JournalEntry | None:
        """The model's journal as it is now."""
        return Journal(self.platform.store, MODEL).read()


@cache
def _policy(overrides: str) -> Policy:
    return load_policy(None, overrides=json.loads(overrides))


def healthy(_seconds: float) -> ProbeSample:
    """All is well."""
    return ProbeSample(total=10, failures=0, latencies_seconds=(0.1,) * 10, healthy=True)


def failing_when(holds: Callable[[], object]) -> Callable[[float], ProbeSample]:
    """Probes that all fail while it holds, and all succeed while it does not."""
    bad = ProbeSample(total=10, failures=10, latencies_seconds=(), healthy=True)
    return lambda seconds: bad if holds() else healthy(seconds)


def changes(world: World) -> list[str]:
    return world.platform.calls


def builds(world: World) -> tuple[str, str]:
    """Digests of the build in production at first, and of the one in staging."""
    first = world.platform.build(PRODUCTION, {"version": 1})
    second = world.platform.build(STAGING, {"version": 2})
    return first.digest, second.digest


def left(world: World) -> JournalEntry:
    """The journal that the last run has left."""
    entry = world.journal()
    assert entry is not None
    return entry


def kinds(world: World) -> list[str]:
    decisions = AuditLog(world.platform.store)
    assert decisions.verify(MODEL) == []
    return [str(decision.kind) for decision in decisions.of(MODEL)]


def word_of_qa(
    world: World, evidence: Evidence, *, approved: bool = True, user: str = "grace"
) -> SignOff:
    """The word of a person of QA about the evidence of what staging runs now, not written yet."""
    revision = world.platform.releases[STAGING.release][-1]
    return SignOff(
        evidence=evidence.digest,
        approved=approved,
        by="Grace of QA",
        user=user,
        at=world.clock.now(),
        note="",
        environment="staging",
        revision=revision.number,
        build=revision.build.digest,
    )


def decide(
    world: World, evidence: Evidence, *, approved: bool = True, store: Store | None = None
) -> None:
    """A person of QA signs the evidence off, or rejects it; `store` is not the world's own."""
    sign_off = word_of_qa(world, evidence, approved=approved)
    SignOffs(store or world.platform.store, MODEL).add(sign_off, evidence.run_id)


def sign_evidence(world: World) -> None:
    """Ask for signed evidence, give runs a key, and sign what development has passed by."""
    key = signing.private_file("ci")
    (world.tmp_path / "run.key").write_bytes(key)
    world.overrides["evidence.signed_by"] = {"gates in CI": signing.public_line("ci")}
    world.overrides["evidence.key_file"] = str(world.tmp_path / "run.key")
    store = world.platform.store
    digest = store.entries[f"passed/{DEVELOPMENT.release}/00000001"].value["evidence"]
    store_evidence(store, stored_evidence(store, MODEL, digest), key)


def gates_run(world: World) -> list[str]:
    """Environments whose whole gates are run from here on."""
    ran: list[str] = []
    real = world.gates.run

    def run(deployment, folder, *, only=(), **more):  # type: ignore[no-untyped-def]
        if not only:
            ran.append(deployment.environment)
        return real(deployment, folder, only=only, **more)

    world.gates.run = run  # type: ignore[method-assign]
    return ran
