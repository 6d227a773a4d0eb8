"""Promotion: the ramp, the target's own gates, and the watch that follows."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Build, Revision, Target, newest_served
from vllm_rollout.model.errors import DeployError, ExitCode, UnreachableError
from vllm_rollout.model.evidence import Evidence
from vllm_rollout.model.units import format_duration
from vllm_rollout.rollout.build_drift import same_images
from vllm_rollout.rollout.canary_ramp import CanaryRamp
from vllm_rollout.rollout.context import Context
from vllm_rollout.rollout.journal import JournalEntry, Phase, TrafficBefore
from vllm_rollout.rollout.result import RolloutResult, problems_of
from vllm_rollout.rollout.rollback import roll_back
from vllm_rollout.rollout.traffic_shift import traffic_before


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """A build that passed the source's gates, and the evidence that says so."""

    build: Build
    values: Mapping[str, Any]
    source_revision: int
    evidence: Evidence
    images: tuple[str, ...]
    """The digests of those that the gated replicas really ran, as far as they are known."""

    def steps(self, context: Context) -> list[tuple[Target, timedelta]]:
        """The steps in replicas, and how long each is held.

        Only the last environment serves users: it is reached by the policy's ramp, the others at
        once.
        """
        capacity = context.policy.environments[context.target.environment].replicas
        ramp = [(step.replicas_of(capacity), step.hold) for step in context.policy.ramp]
        return [
            (
                Target(build=self.build, values=self.values, replicas=replicas, capacity=capacity),
                hold,
            )
            for replicas, hold in (ramp if context.serves_users else [(capacity, timedelta())])
        ]

    def by_traffic(self, context: Context, before: TrafficBefore) -> CanaryRamp:
        """The ramp in shares of the traffic."""
        return CanaryRamp(
            context=context,
            build=self.build,
            values=self.values,
            images=self.images,
            before=before,
        )


def describe(context: Context, promotion: Promotion) -> list[str]:
    """What `promote` would do, one line each."""
    history = context.platform.history(context.target)
    before = context.ledger.good_revision(context.target, history)
    if traffic := traffic_before(context):
        lines = promotion.by_traffic(context, traffic).describe()
    else:
        lines = [
            f"bring {target.replicas} of {target.capacity} replicas of {context.target} to build "
            f"{target.build.short}, then watch for {format_duration(hold)}"
            for target, hold in promotion.steps(context)
        ]
    if context.serves_users:
        lines.append(f"run the {context.target.environment} gates")
        lines.append(f"watch for {format_duration(context.policy.watch.duration)}")
    back_to = f"revision {before.number}" if before else "nothing deployed"
    lines.append(f"if a gate fails or a trigger fires: return to {back_to}")
    return lines


def promote(context: Context, promotion: Promotion) -> RolloutResult:
    """Bring the target to the build, step by step, gate it and watch it."""
    target, history = context.target, context.platform.history(context.target)
    others = [r for r in history if r.build != promotion.build]
    good = context.ledger.good_revision(target, others)
    before = good.number if good else None
    if traffic := traffic_before(context):
        serving = newest_served(history)
        reached = _ramp_by_traffic(context, promotion, traffic, serving=serving, good=before)
    else:
        reached = _ramp_by_replicas(context, promotion, before=before)
    if isinstance(reached, RolloutResult):
        return reached
    entry, revision = reached
    if context.serves_users:
        return gate_and_watch(context, entry, revision, evidence_digest=promotion.evidence.digest)
    run = context.verify(target)
    if run.outcome is not Outcome.PASS:
        return roll_back(context, entry, f"it does not serve: {problems_of(run)}")
    if trouble := context.register():
        return roll_back(context, entry, trouble)
    return _promoted(context, entry)


def _ramp_by_traffic(
    context: Context,
    promotion: Promotion,
    traffic: TrafficBefore,
    *,
    serving: Revision | None,
    good: int | None,
) -> tuple[JournalEntry, Revision] | RolloutResult:
    """Bring the target to the build beside the one that is `serving`, which is what there is to
    return to until it is changed itself."""
    ramp = promotion.by_traffic(context, traffic)
    entry = context.begin(
        promotion.build,
        before=serving.number if serving else None,
        note="about to begin",
        traffic=traffic,
    )
    climbed = ramp.climb(entry)
    return (
        climbed if isinstance(climbed, RolloutResult) else ramp.take_its_place(climbed, good=good)
    )


def _ramp_by_replicas(
    context: Context, promotion: Promotion, *, before: int | None
) -> tuple[JournalEntry, Revision] | RolloutResult:
    """Bring the target's replicas to the build, step by step."""
    target = context.target
    entry = context.begin(promotion.build, before=before, note="about to begin")
    revision: Revision | None = None
    for wanted, hold in promotion.steps(context):
        what = f"{wanted.replicas} of {wanted.capacity} replicas on build {wanted.build.short}"
        context.still_ours()
        entry = context.journal.advance(entry, Phase.RAMP, what, now=context.clock.now())
        context.say(f"{target}: {what}")
        try:
            revision = context.platform.apply(
                target,
                wanted,
                description=f"vllm-rollout {context.run_id}: {what}",
                timeout=context.policy.deploy_timeout,
            )
            same_images(context, target, wanted.build, promotion.images)
        except DeployError as error:
            context.say_why(error)
            code = ExitCode.ROLLED_BACK if revision else ExitCode.GATE_FAILED
            return roll_back(context, entry, str(error), code=code)
        context.say(f"{target}: revision {revision.number} is ready, {what}", outcome=Outcome.PASS)
        end = context.watch(target, hold)
        if end.fired:
            return roll_back(context, entry, end.fired)
        if end.unobservable:
            return RolloutResult(
                code=ExitCode.UNREACHABLE,
                conclusion=f"The watch over {what} went blind ({', '.join(end.unobservable)}), and "
                "what is not seen does not go on: run gate-and-promote again, it undoes this step",
            )
    if revision is None:
        raise AssertionError("the policy has no ramp")
    return entry, revision


def gate_and_watch(
    context: Context, entry: JournalEntry, revision: Revision, *, evidence_digest: str
) -> RolloutResult:
    """Gate the fully promoted target, then watch it for as long as the policy says."""
    context.still_ours()
    entry = context.journal.advance(
        entry, Phase.GATES, f"gating revision {revision.number}", now=context.clock.now()
    )
    # Before the gates: the smoke test comes through the router, which must know the model.
    if trouble := context.register():
        return roll_back(context, entry, trouble)
    run = context.gate(context.target, context.target.environment)
    if run.outcome is not Outcome.PASS:
        return roll_back(context, entry, f"gates after promotion: {problems_of(run)}")
    context.still_ours()
    context.ledger.passed(context.target, revision, evidence_digest)
    entry = context.journal.advance(
        entry, Phase.WATCH, f"watching revision {revision.number}", now=context.clock.now()
    )
    return watch_to_the_end(context, entry)


def watch_to_the_end(context: Context, entry: JournalEntry) -> RolloutResult:
    """The watch after promotion; closes the journal."""
    duration = context.policy.watch.duration
    context.say(f"watching {context.target} for {format_duration(duration)}")
    end = context.watch(context.target, duration, after_promotion=True)
    for name, verdict in end.verdicts.items():
        context.say(f"{name} after promotion: {verdict.outcome}", verdict.reason)
    if end.fired:
        return roll_back(context, entry, end.fired)
    if end.unobservable:
        return RolloutResult(
            code=ExitCode.UNREACHABLE,
            conclusion=f"Promoted, and the watch went blind ({', '.join(end.unobservable)}): run "
            "gate-and-promote again to go on watching",
        )
    context.say(f"{context.target}: no trigger fired", outcome=Outcome.PASS)
    try:
        return _promoted(context, entry)
    except UnreachableError as error:  # no reason to take back what was found well
        return RolloutResult(
            code=ExitCode.UNREACHABLE,
            conclusion=f"Promoted, and watched to the end, which could not be written down "
            f"({error}): run gate-and-promote again, it watches once more and closes the journal",
        )


def _promoted(context: Context, entry: JournalEntry) -> RolloutResult:
    context.journal.advance(entry, Phase.DONE, "promoted", now=context.clock.now())
    return RolloutResult(
        code=ExitCode.OK,
        conclusion=f"Promoted build {entry.build.short} to {context.target.environment}, 100%",
    )
