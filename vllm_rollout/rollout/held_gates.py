"""Gates of a target that runs the build already: held while inconclusive, and asked again.

All asks together are wrong no more often than one may be: they share its risk (`RepeatedGates`).
Production is watched meanwhile. What stays open at the deadline is kept or rolled back, as the
policy says of each gate.
"""

from dataclasses import replace

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.after_change import seen_against
from vllm_rollout.judge.alpha_spending import RepeatedGates
from vllm_rollout.model.deployment import newest_served
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.evidence import GateRun
from vllm_rollout.model.units import format_duration
from vllm_rollout.rollout.audit_log import DecisionKind
from vllm_rollout.rollout.evidence_store import PassedRevisions
from vllm_rollout.rollout.journal import JournalEntry
from vllm_rollout.rollout.leased_run import RunTools
from vllm_rollout.rollout.rollback import roll_back
from vllm_rollout.rollout.run import RolloutResult, Run, Undo, problems_of


def gates_after_change(tools: RunTools, entry: JournalEntry) -> GateRun | Undo:
    """Run the target's gates, those that are inconclusive again until the policy's deadline.

    An `Undo` where a gate failed, a trigger fired meanwhile, or the policy rolls back what is
    still open. Otherwise the run passed, or nothing but what it is `open` about is to be kept.
    An ask that found no figures is none: it could be neither right nor wrong.
    """
    run, log, clock = tools.run, tools.log, tools.log.clock
    rules, target = run.policy.inconclusive, run.target
    risk = RepeatedGates(confidence=run.policy.confidence, more=rules.asks_again)
    found = tools.gates.run_gates(target, confidence=risk.first)
    judged = _judged(found)
    until = clock.monotonic() + rules.deadline.total_seconds()
    for _ in range(rules.asks_again):
        if found.outcome is not Outcome.INCONCLUSIVE or _changed(found):
            break
        if clock.monotonic() >= until:
            break
        log.log_step(
            f"{target} is held, and asked again in {format_duration(rules.ask_every)}",
            problems_of(found),
        )
        end = tools.observer.watch(target, rules.ask_every)
        if end.fired:
            return Undo(entry, end.fired)
        tools.releases.ensure_own()
        found = tools.gates.run_again(
            target, found, confidence=risk.again if judged else risk.first
        )
        judged = judged or _judged(found)
    if found.outcome is Outcome.PASS or (found.outcome is not Outcome.FAIL and _kept(run, found)):
        return found
    return Undo(entry, f"gates after promotion: {problems_of(found)}")


def _changed(found: GateRun) -> bool:
    """Return whether what runs is another than was gated; what could not be read may not be."""
    return bool(found.changed) and not found.unread


def _judged(found: GateRun) -> bool:
    """Return whether figures of an open gate were judged, so that it took its part of the risk."""
    open_gates = [gate for gate in found.gates if gate.outcome is Outcome.INCONCLUSIVE]
    return any(verdict.n for gate in open_gates for verdict in gate.verdicts)


def _kept(run: Run, found: GateRun) -> bool:
    """Return whether every gate that is still open is to be kept."""
    rules = run.policy.inconclusive
    kept = [
        rules.keeps(gate.gate, seen=seen_against(gate))
        for gate in found.gates
        if gate.outcome is Outcome.INCONCLUSIVE
    ]
    kept += [rules.keeps(gate, seen=False) for gate in found.missing]
    return all(kept) and not _changed(found)


def kept_unseen(run: Run, unseen: str) -> RolloutResult:
    """Return the result of a promotion that stays though not all of it was seen."""
    return RolloutResult(
        code=ExitCode.UNREACHABLE,
        conclusion=f"A person is needed: {run.target} runs the build and is kept, but it has not "
        f"passed its gates: {unseen}. To ask them again: {run.command}",
        decision=DecisionKind.KEPT,
    )


def ask_kept_again(tools: RunTools) -> RolloutResult | None:
    """Gate a target again that an earlier run kept; None where the last rollout kept nothing."""
    run, log, releases = tools.run, tools.log, tools.releases
    last = releases.journal.last
    serving = newest_served(releases.platform.history(run.target))
    if last is None or serving is None:
        return None
    kept = last.keeps(serving.build, run.target.environment)
    if kept is None:
        return None
    started = log.now()
    found = tools.gates.run_gates(run.target)
    if found.outcome is Outcome.PASS:
        digest = log.store_evidence(releases.platform.store, started)
        PassedRevisions(releases.platform.store).passed(run.target, serving, digest)
        releases.ensure_lease()
        releases.journal.write(replace(last, unseen="", kept=None, updated=log.now()))
        return RolloutResult(
            code=ExitCode.OK,
            conclusion=f"{run.target} was kept by {kept.run_id}, and has passed its gates now",
            decision=DecisionKind.SETTLED,
        )
    if found.outcome is Outcome.FAIL or not _kept(run, found):
        entry = releases.begin(kept.build, before=kept.before, note="kept, and its gates failed")
        return roll_back(tools, entry, f"gates after promotion: {problems_of(found)}")
    return kept_unseen(run, problems_of(found))
