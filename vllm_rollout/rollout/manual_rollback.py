"""Manual rollbacks and rollbacks started by `watch`."""

from collections.abc import Sequence
from datetime import datetime

from vllm_rollout.model.deployment import Deployment, Revision, newest_served
from vllm_rollout.model.errors import ExitCode, UsageError
from vllm_rollout.model.evidence import Evidence
from vllm_rollout.rollout.audit_log import AuditLog, DecisionKind
from vllm_rollout.rollout.journal import JournalEntry
from vllm_rollout.rollout.leased_run import run_under_lease
from vllm_rollout.rollout.passed_revisions import PassedRevisions
from vllm_rollout.rollout.result import RolloutResult
from vllm_rollout.rollout.rollback import roll_back
from vllm_rollout.rollout.tools import RunTools


def manual_rollback(tools: RunTools, *, to: int | None, reason: str) -> Evidence:
    """Return the target to revision `to`, or to the newest good one before the serving one."""
    target, releases = tools.run.target, tools.releases
    passed = PassedRevisions(releases.platform.store)

    def work(_started: datetime) -> RolloutResult:
        left = releases.journal.read()
        if left is not None and not left.unfinished:
            left = None
        if left is not None:
            releases.take_over(left)
        releases.recover()
        history = releases.platform.history(target)
        serving = newest_served(history)
        # A canary that has traffic is what is left, though the release has another build yet.
        leaving = left.build if left and left.traffic else serving.build if serving else None
        earlier = [r for r in history if r.build != leaving]
        good = passed.good_revision(target, earlier)
        number = to if to is not None else good.number if good else None
        if number is None or number not in {r.number for r in history}:
            raise UsageError(
                f"{target} has no revision {to}"
                if to
                else f"{target} has no earlier good revision",
                remedy=f"vllm-rollout history {target.model} -e {target.environment} lists them.",
            )
        entry = releases.begin(
            left.build if left and left.traffic else history[-1].build,
            before=number,
            note="rollback by hand",
            traffic=left.traffic if left else None,
        )
        return roll_back(tools, entry, reason, code=ExitCode.OK)

    return run_under_lease(tools.run, tools.log, releases, work, done=DecisionKind.ROLLED_BACK)


def watch_rollback(tools: RunTools, *, reason: str, revision: int) -> Evidence:
    """Return the target from `revision`, over which a trigger fired, to the newest good one before.

    Nothing is done, and the end is OK, where a rollout is under way by now or another revision
    serves. A revision that a rollback restored is not left again by a trigger: going from revision
    to revision would not help, a person may.
    """
    target, releases = tools.run.target, tools.releases
    passed = PassedRevisions(releases.platform.store)

    def work(_started: datetime) -> RolloutResult:
        last = releases.journal.read()
        if last is not None and last.in_progress:
            return RolloutResult(
                code=ExitCode.OK, conclusion=f"Nothing done: {last.run_id} is under way"
            )
        history = releases.platform.history(target)
        serving = newest_served(history)
        if serving is None or serving.number != revision:
            return RolloutResult(
                code=ExitCode.OK, conclusion=f"Nothing done: revision {revision} is gone"
            )
        earlier = [r for r in history if r.number < revision and r.build != serving.build]
        good = passed.good_revision(target, earlier)
        if good is None or _brought_back(tools.log.audit, target, history, serving, last):
            why = "it was brought back itself" if good else "no earlier revision is good"
            return RolloutResult(
                code=ExitCode.NEEDS_PERSON,
                conclusion=f"A person is needed: {target}, revision {revision}: {reason}; it is "
                f"not rolled back, as {why}",
            )
        entry = releases.begin(
            serving.build,
            before=good.number,
            note=f"watch: {reason}",
            traffic=last.traffic if last and last.unfinished else None,
        )
        return roll_back(tools, entry, reason)

    return run_under_lease(tools.run, tools.log, releases, work, done=DecisionKind.ROLLED_BACK)


def _brought_back(
    audit: AuditLog,
    target: Deployment,
    history: Sequence[Revision],
    serving: Revision,
    last: JournalEntry | None,
) -> bool:
    """Return whether a rollback brought what serves, and no promotion or manual change."""
    if last is not None and last.target == target.environment:
        restored = [r.build for r in history if r.number == last.before] or [serving.build]
        return last.build != serving.build and serving.build in restored
    about = [d for d in audit.of(target.model) if d.environment == target.environment]
    return any(
        each.kind is DecisionKind.ROLLED_BACK and serving.created <= each.at for each in about[-1:]
    )
