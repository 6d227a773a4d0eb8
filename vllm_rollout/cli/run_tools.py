"""Tools of the commands that change releases, and the output when a run ends."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vllm_rollout.cli import options
from vllm_rollout.cli.ci import tell_ci_of_end
from vllm_rollout.cli.console import LiveReporter, show_table
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import ExitCode, RolloutError
from vllm_rollout.model.evidence import Evidence, new_run_id
from vllm_rollout.model.units import counted
from vllm_rollout.next_command import next_command, promote_command, release_command
from vllm_rollout.platform.reader import ReleaseReader, at_home
from vllm_rollout.platform.writer import writer_of
from vllm_rollout.policy import Policy
from vllm_rollout.report.changes import Comparison
from vllm_rollout.report.deployment_record import write_record
from vllm_rollout.report.formatting import report_title
from vllm_rollout.report.render import update_index, write_reports
from vllm_rollout.report.rows import remedy_of
from vllm_rollout.report.terminal import gates_table
from vllm_rollout.rollout.evidence_store import PassedRevisionsReader
from vllm_rollout.rollout.gates import GateRunner
from vllm_rollout.rollout.leased_run import RunTools, assemble
from vllm_rollout.rollout.notifier import Notifier
from vllm_rollout.rollout.old_reports import remove_old_reports
from vllm_rollout.rollout.run import Clock, Emergency, Run, SystemClock
from vllm_rollout.rollout.sign_offs import environment_after, how_to_sign
from vllm_rollout.settings import Settings

_NAMED_BY_GATES = (ExitCode.GATE_FAILED, ExitCode.INCONCLUSIVE, ExitCode.UNREACHABLE)
"""Ends after which the gates' findings say what to do; the conclusions of others say it."""


def new_run_tools(
    settings: Settings,
    *,
    source: Deployment,
    target: Deployment,
    gate_options: Sequence[str],
    own_gates: Sequence[Path] = (),
    reason: str,
    reporter: LiveReporter,
    emergency: Emergency | None = None,
    again: str = "",
    clock: Clock | None = None,
) -> RunTools:
    """The tools of a new run from `source` to `target`."""
    clock = clock or SystemClock()
    run_id = new_run_id(clock.now())
    policy, who = settings.policy.for_model(target.model), options.user_name()
    messages = Notifier(
        policy.notifications,
        model=target.model,
        environment=target.environment,
        run_id=run_id,
        who=who,
        reason="" if reason == options.NO_REASON else reason,
        now=clock.now,
        store=writer_of(at_home(settings.reader(), target.environment)).store,
        serves_users=target.environment == policy.order[-1],
        expected=sum((step.hold for step in policy.ramp), policy.watch.duration),
    )
    return assemble(
        Run(
            id=run_id,
            source=source,
            target=target,
            policy=policy,
            who=who,
            reason=reason,
            folder=settings.report_dir / target.model / run_id,
            emergency=emergency,
            again=again,
        ),
        settings,
        clock=clock,
        reporter=reporter,
        runner=GateRunner(
            options=gate_options,
            own_gates=own_gates,
            on_event=lambda kind, text: (
                reporter.progress(text) if kind == "progress" else reporter.gate(text)
            ),
        ),
        notify=messages.tell,
        undelivered=messages.undelivered,
        announce=messages.tell,
        close_left=messages.close_left,
    )


def show_end(evidence: Evidence, tools: RunTools, *, verbose: bool = False) -> None:
    """Write report and record, say where they are, how the run ended and what is next.

    The gates had their lines when they ended; `verbose` has a table of all that they found. The
    rollout is over: a report that cannot be written is named, and changes no exit code.
    """
    for gate_run in evidence.runs if verbose else ():
        show_table(options.console, gates_table(gate_run))
    run, releases = tools.run, tools.releases
    target = run.target
    comparisons: Sequence[Comparison] = ()
    try:
        paths = write_reports(
            evidence,
            run.folder,
            kept=lambda deployment: _kept(evidence, tools, deployment),
            sign_off_words=run.policy.sign_off_words(run.source.environment),
        )
        comparisons = paths.comparisons
        if releases.touched and run.serves_users:
            entry = releases.journal.last
            before = entry.before if entry else None
            record = write_record(
                evidence,
                folder=Path("deployments"),
                deployer=run.who,
                reason=run.reason,
                rollback_command=_rollback_command(target, before),
                undo_command=releases.platform.undo_command(target, before),
                report_path=paths.html,
                previous=releases.previous,
                undelivered=tools.log.missed,
                environment=target.environment,
            )
            options.say(f"record: {record}")
        options.say(f"report: {paths.html}")
        tidy_reports(run.folder.parent, releases.platform, run.policy, target.model)
    except (RolloutError, OSError) as error:
        options.say(
            f"the report could not be written, the evidence is in the platform's store: {error}"
        )
    options.say(report_title(evidence))
    following = _next_command(evidence, tools)
    if tools.log.result and tools.log.result.awaits_sign_off:
        # The command follows, with the digest that was not known when this was written.
        unnamed = f", then {how_to_sign(run.policy, run.source, 'DIGEST')} (or --reject)"
        options.say(evidence.conclusion.replace(unnamed, ""))
        options.say(f"sign it off: {following}")
    else:
        options.say(evidence.conclusion)
        if evidence.exit_code == ExitCode.OK:
            options.say(f"next: {following}")
        elif evidence.exit_code in _NAMED_BY_GATES and (remedy := remedy_of(evidence)):
            options.say(f"next: {remedy}")
    tell_ci_of_end(evidence, tools, comparisons, following)


def _next_command(evidence: Evidence, tools: RunTools) -> str:
    """The command by which somebody goes on from there."""
    run, code = tools.run, evidence.exit_code
    if tools.log.result and tools.log.result.awaits_sign_off:
        return how_to_sign(run.policy, run.source, evidence.digest)
    if code in (ExitCode.INCONCLUSIVE, ExitCode.UNREACHABLE, ExitCode.INTERRUPTED):
        return run.command
    if code == ExitCode.NEEDS_PERSON:
        return release_command("diagnose", run.target)
    if code in (ExitCode.GATE_FAILED, ExitCode.ROLLED_BACK):
        return next_command("vllm-rollout", "history", run.target.model)
    following = environment_after(run.policy, run.target.environment)
    promoted = tools.releases.touched and run.source != run.target
    if code == ExitCode.OK and promoted and following != run.target.environment:
        return promote_command(run.target.model, following)
    return next_command("vllm-rollout", "status", run.target.model)


def _kept(evidence: Evidence, tools: RunTools, deployment: Deployment) -> Iterator[Evidence]:
    """Yield the evidence by which revisions of `deployment` passed, from its store."""
    if evidence.exit_code != ExitCode.UNREACHABLE:  # after which nobody waits for it once more
        home = at_home(tools.releases.platform, deployment.environment)
        passed = PassedRevisionsReader(home.store)
        yield from passed.passing_evidence(deployment, tools.run.policy.evidence)


def tidy_reports(folder: Path, platform: ReleaseReader, policy: Policy, model: str) -> None:
    """Remove old reports of `model` from its folder, and list the runs that are left.

    Where reports cannot be removed they stay, and the reason is printed.
    """
    try:
        if gone := remove_old_reports(folder, platform, policy, model):
            options.say(
                f"removed the reports of {counted(len(gone), 'old run')} from {folder}, {gone[0]} "
                f"to {gone[-1]}: `keep_reports` is {policy.keep_reports}"
            )
    except (RolloutError, OSError) as error:
        options.say(f"old reports stay in {folder}: {error}")
    if problem := update_index(folder.parent):
        options.say(problem)


def _rollback_command(target: Deployment, before: int | None) -> str:
    """Return the command that returns to the revision that served before the run."""
    if before is None:
        return "none: nothing was deployed there before"
    return release_command("rollback", target, "--to", str(before))
