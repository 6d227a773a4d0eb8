"""Promotion: the ramp, the target's own gates, and the watch that follows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Build, Deployment, Revision, Target, newest_served
from vllm_rollout.model.errors import DeployError, ExitCode, UnreachableError
from vllm_rollout.model.units import format_about, format_duration, of_total
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.policy.notifications import MessageKind
from vllm_rollout.rollout.canary_ramp import CanaryRamp, describe_traffic_ramp
from vllm_rollout.rollout.evidence_store import PassedRevisions, PassedRevisionsReader
from vllm_rollout.rollout.gates import Gates
from vllm_rollout.rollout.held_gates import gates_after_change, kept_unseen
from vllm_rollout.rollout.journal import Event, JournalEntry, TrafficBefore
from vllm_rollout.rollout.leased_releases import LeasedReleases
from vllm_rollout.rollout.leased_run import RunTools
from vllm_rollout.rollout.model_registry import register_target
from vllm_rollout.rollout.observer import DeploymentObserver
from vllm_rollout.rollout.preconditions import same_images
from vllm_rollout.rollout.promotion_blockers import until_open
from vllm_rollout.rollout.rollback import roll_back
from vllm_rollout.rollout.run import RolloutResult, Run, RunLog, Undo, not_serving, problems_of
from vllm_rollout.rollout.traffic_shift import TrafficShift, traffic_before


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """A build that passed the source's gates in a run that `started` then."""

    build: Build
    values: Mapping[str, Any]
    started: datetime
    images: tuple[str, ...]
    """Image digests that the gated replicas really ran, as far as they are known."""

    def steps(self, run: Run) -> list[tuple[Target, timedelta]]:
        """Return the steps in replicas, each with its hold.

        Only the last environment serves users: it is reached by the policy's ramp, the others at
        once.
        """
        capacity = run.policy.environments[run.target.environment].replicas
        ramp = [(step.replicas_of(capacity), step.hold) for step in run.policy.ramp]
        return [
            (
                Target(build=self.build, values=self.values, replicas=replicas, capacity=capacity),
                hold,
            )
            for replicas, hold in (ramp if run.serves_users else [(capacity, timedelta())])
        ]


def describe(run: Run, platform: ReleaseReader, promotion: Promotion) -> list[str]:
    """Return the steps that `promote` would take, one line each."""
    history = platform.history(run.target)
    before = _to_return_to(run, platform, history)
    if traffic_before(platform, run.policy, run.target):
        lines = describe_traffic_ramp(run.policy, run.target, promotion.build)
    else:
        lines = [
            f"bring {of_total(target.replicas, target.capacity, 'replica')} of {run.target} to "
            f"build {target.build.short}, then watch for {format_duration(hold)}"
            for target, hold in promotion.steps(run)
        ]
        if scalers := platform.autoscaled_by(run.target):
            lines.append(f"take these shares of the replicas that {', '.join(scalers)} asks for")
    if run.serves_users:
        lines.append(f"run the {run.target.environment} gates")
        lines.append(f"watch for {format_duration(run.policy.watch.duration)}")
    back_to = f"revision {before.number}" if before else "nothing deployed"
    lines.append(f"if a gate fails or a trigger fires: return to {back_to}")
    return lines


def _to_return_to(
    run: Run, platform: ReleaseReader, history: Sequence[Revision]
) -> Revision | None:
    """Return the revision that a failed promotion returns to: a withdrawn build before nothing."""
    passed = PassedRevisionsReader(platform.store)
    return passed.good_revision(run.target, history, also_withdrawn=True)


def promote(tools: RunTools, promotion: Promotion) -> RolloutResult:
    """Bring the target to the build, step by step, gate it and watch it, or roll it back."""
    run, platform = tools.run, tools.releases.platform
    history = platform.history(run.target)
    others = [r for r in history if r.build != promotion.build]
    good = _to_return_to(run, platform, others)
    before = good.number if good else None
    reached: tuple[JournalEntry, Revision] | Undo | RolloutResult
    if traffic := traffic_before(platform, run.policy, run.target):
        serving = newest_served(history)
        reached = _ramp_by_traffic(tools, promotion, traffic, serving=serving, good=before)
    else:
        reached = _ramp_by_replicas(
            run, tools.log, tools.releases, tools.observer, promotion, before=before
        )
    if not isinstance(reached, tuple):
        return _result(tools, reached)
    entry, revision = reached
    if not run.serves_users:
        return _result(tools, _verify(run, tools.log, tools.releases, tools.gates, entry))
    watched = _pass_gates(tools, entry, revision, promotion.started)
    if isinstance(watched, Undo):
        return _result(tools, watched)
    return watch_to_the_end(tools, watched)


def watch_to_the_end(tools: RunTools, entry: JournalEntry) -> RolloutResult:
    """Watch the promoted target and close the journal, or roll it back."""
    return _result(tools, _watch(tools.run, tools.log, tools.releases, tools.observer, entry))


def _result(tools: RunTools, end: Undo | RolloutResult) -> RolloutResult:
    """Return the result; an `Undo` is carried out first."""
    if isinstance(end, Undo):
        return refused(tools, end.entry, end.reason, code=end.code) or roll_back(
            tools, end.entry, end.reason, code=end.code
        )
    return end


def refused(
    tools: RunTools, entry: JournalEntry, reason: str, *, code: ExitCode
) -> RolloutResult | None:
    """Close the journal of a promotion that was refused before it changed anything, and return its
    result; None where there is something to undo."""
    releases = tools.releases
    if releases.changed or entry.run_id != tools.run.id:
        return None
    releases.close(entry, Event.REFUSED, f"nothing was changed: {reason}")
    releases.touched = releases.under_way = False
    return RolloutResult(code=code, conclusion=f"Nothing was changed: {reason}")


def _ramp_by_traffic(
    tools: RunTools,
    promotion: Promotion,
    traffic: TrafficBefore,
    *,
    serving: Revision | None,
    good: int | None,
) -> tuple[JournalEntry, Revision] | Undo | RolloutResult:
    """Bring the target to the build beside the one that is `serving`.

    That one is the revision to return to until it is changed itself.
    """
    ramp = CanaryRamp(
        run=tools.run,
        log=tools.log,
        releases=tools.releases,
        observer=tools.observer,
        gates=tools.gates,
        traffic=TrafficShift.of(tools),
        build=promotion.build,
        values=promotion.values,
        images=promotion.images,
        before=traffic,
    )
    entry = tools.releases.begin(
        promotion.build,
        before=serving.number if serving else None,
        note="about to begin",
        traffic=traffic,
    )
    climbed = ramp.climb(entry)
    if isinstance(climbed, JournalEntry):
        return ramp.take_its_place(climbed, good=good)
    return climbed


def _ramp_by_replicas(
    run: Run,
    log: RunLog,
    releases: LeasedReleases,
    observer: DeploymentObserver,
    promotion: Promotion,
    *,
    before: int | None,
) -> tuple[JournalEntry, Revision] | Undo | RolloutResult:
    """Bring the target's replicas to the build, step by step."""
    target = run.target
    entry = releases.begin(promotion.build, before=before, note="about to begin")
    revision: Revision | None = None
    for wanted, hold in promotion.steps(run):
        what = (
            f"{of_total(wanted.replicas, wanted.capacity, 'replica')} on build {wanted.build.short}"
        )
        entry = releases.advance(entry, Event.STEP, what)
        log.log_step(f"{target}: {what}")
        try:
            revision = releases.apply(target, wanted, what)
            same_images(releases.platform, target, wanted.build, promotion.images)
        except DeployError as error:
            log.log_symptoms(error)
            code = ExitCode.ROLLED_BACK if revision else ExitCode.GATE_FAILED
            return Undo(entry, str(error), code)
        log.log_step(f"{target}: revision {revision.number} is ready, {what}", outcome=Outcome.PASS)
        end = observer.watch(target, hold)
        if wanted.replicas < wanted.capacity:
            end = until_open(run, log, end, lambda time: observer.watch(target, time))
        if end.fired:
            return Undo(entry, end.fired)
        if end.unobservable:
            return RolloutResult(
                code=ExitCode.UNREACHABLE,
                conclusion=f"The watch over {what} went blind ({end.blind}), and "
                f"what is not seen does not go on. To undo this step: {run.command}",
            )
    if revision is None:
        raise AssertionError("the policy has no ramp")
    return entry, revision


def _verify(
    run: Run, log: RunLog, releases: LeasedReleases, gates: Gates, entry: JournalEntry
) -> Undo | RolloutResult:
    """Verify and register a target without users, and close the journal."""
    found = gates.verify(run.target)
    if found.outcome is not Outcome.PASS:
        return Undo(entry, not_serving(found))
    if unregistered := register_target(run, releases.platform, log):
        return Undo(entry, unregistered)
    return _promoted(run.target, releases, entry, Event.VERIFIED)


def _pass_gates(
    tools: RunTools, entry: JournalEntry, revision: Revision, started: datetime
) -> JournalEntry | Undo:
    """Gate the fully promoted target; return the entry of the watch that follows."""
    run, log, releases = tools.run, tools.log, tools.releases
    entry = releases.advance(entry, Event.SCALED, f"gating revision {revision.number}")
    # Before the gates: the smoke test comes through the router, which must know the model.
    if unregistered := register_target(run, releases.platform, log):
        return Undo(entry, unregistered)
    found = gates_after_change(tools, entry)
    if isinstance(found, Undo):
        return found
    releases.ensure_lease()
    store = releases.platform.store
    try:
        log.store_evidence(store, started)
    except DeployError as error:  # too large, say: no reason to take back what passed
        log.log_step("the evidence of these gates is only in the report folder", str(error))
    watching = f"watching revision {revision.number}"
    if found.outcome is not Outcome.PASS:
        unseen = problems_of(found)
        log.log_step(f"{run.target} is kept: a person is needed", unseen, Outcome.INCONCLUSIVE)
        log.notify(MessageKind.KEPT, kept_unseen(run, unseen).conclusion)
        return releases.advance(replace(entry, unseen=unseen), Event.GATES_UNSEEN, watching)
    # Without the run's end, which `persist_evidence` adds.
    PassedRevisions(store).passed(run.target, revision, log.grown_from)
    log.passed_revision = revision
    return releases.advance(entry, Event.GATES_PASSED, watching)


def _watch(
    run: Run,
    log: RunLog,
    releases: LeasedReleases,
    observer: DeploymentObserver,
    entry: JournalEntry,
) -> Undo | RolloutResult:
    duration = run.policy.watch.duration
    log.log_step(f"watching {run.target} for {format_about(duration)}")
    end = observer.watch(run.target, duration, after_promotion=True)
    for name, verdict in end.verdicts.items():
        log.log_step(f"{name} after promotion: {verdict.outcome}", verdict.reason)
    if end.fired:
        return Undo(entry, end.fired)
    if end.unobservable:
        return RolloutResult(
            code=ExitCode.UNREACHABLE,
            conclusion=f"Promoted, and the watch went blind ({end.blind}). "
            f"To go on watching: {run.command}",
        )
    log.log_step(f"{run.target}: no trigger fired", outcome=Outcome.PASS)
    try:
        releases.ensure_own()
        if entry.unseen:
            releases.close(entry, Event.WATCHED, f"kept, not seen to pass: {entry.unseen}")
            return kept_unseen(run, entry.unseen)
        return _promoted(run.target, releases, entry, Event.WATCHED)
    except UnreachableError as error:  # no reason to take back what was found well
        return RolloutResult(
            code=ExitCode.UNREACHABLE,
            conclusion=f"Promoted, and watched to the end, which could not be written down "
            f"({error}). To watch once more and close the journal: {run.command}",
        )


def _promoted(
    target: Deployment, releases: LeasedReleases, entry: JournalEntry, event: Event
) -> RolloutResult:
    releases.close(entry, event, "promoted")
    return RolloutResult(
        code=ExitCode.OK,
        conclusion=f"Promoted build {entry.build.short} to {target.environment}, 100%",
    )
