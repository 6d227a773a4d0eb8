"""`vllm-rollout history`."""

from typing import Annotated, Any

import typer
from pydantic import TypeAdapter
from rich.markup import escape
from rich.table import Table

from vllm_rollout.cli import options
from vllm_rollout.cli.console import show_table
from vllm_rollout.model.deployment import Revision, short_digest
from vllm_rollout.model.errors import ExitCode, UnreachableError
from vllm_rollout.model.units import counted
from vllm_rollout.platform.reader import homes
from vllm_rollout.policy import Policy
from vllm_rollout.rollout.audit_log import AuditLogReader, Decision
from vllm_rollout.rollout.identity import unproved

_REVISIONS: TypeAdapter[list[Revision]] = TypeAdapter(list[Revision])


@options.about_releases
def history_command(
    model: options.Model,
    environment: Annotated[
        str | None, options.environment_option("decisions about all, no revisions")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, for programs")] = False,
    *,
    choice: options.Choice,
) -> None:
    """Show every decision about MODEL, who took it, when, why and on which evidence.

    With --environment only those about it, and its revisions. The decisions are a chain: what was
    changed, removed or replaced afterwards is named, and the exit code is 1.
    """
    settings = choice.settings()
    where = settings.reader()
    order = settings.policy.order
    settings.deployment(model, environment or order[0])  # refuses what is no name
    chains = [AuditLogReader(each.store) for each in homes(where, order)]
    wrong = list(dict.fromkeys(line for chain in chains for line in chain.verify(model)))
    read = [chain.of(model) for chain in chains]
    # Each chain has its own order; several are merged by time.
    every = list({d.digest: d for chain in read for d in chain}.values())
    if len(chains) > 1:
        every.sort(key=lambda decision: decision.at)
    decisions, *shown = (
        [d for d in each if environment in (None, d.environment)] for each in (every, *read)
    )
    # Not of the merged ones: a number is a decision's own in its chain alone.
    doubtful = _doubtful(shown, settings.policy.for_model(model))
    revisions = (
        list(where.history(settings.deployment(model, environment))) if environment else None
    )
    if as_json:
        options.say_json(_document(model, decisions, revisions, wrong, doubtful))
    else:
        show_table(options.console, _decisions_table(model, decisions))
        if revisions is not None:
            show_table(options.console, _revisions_table(f"{environment}/{model}", revisions))
        for line in doubtful:
            options.say(f"does not count: {line}")
        for line in wrong:
            options.say(f"TAMPERED: {line}")
        if not wrong:
            options.say(f"the chain of {counted(len(every), 'decision')} is whole")
    if wrong:
        raise typer.Exit(int(ExitCode.GATE_FAILED))


def _doubtful(chains: list[list[Decision]], policy: Policy) -> list[str]:
    """Return which sign-offs do not count, for want of the proof that the policy asks for."""
    try:
        return list(dict.fromkeys(line for chain in chains for line in unproved(chain, policy)))
    except UnreachableError as error:
        return [f"what a token proves is not known: {error}"]


def _document(
    model: str,
    decisions: list[Decision],
    revisions: list[Revision] | None,
    wrong: list[str],
    doubtful: list[str],
) -> dict[str, Any]:
    listed = TypeAdapter(list[Decision]).dump_python(decisions, mode="json")
    for entry, decision in zip(listed, decisions, strict=True):
        entry["digest"] = decision.digest
    return {
        "model": model,
        "whole": not wrong,
        "wrong": wrong,
        "not_counted": doubtful,
        "decisions": listed,
        "revisions": None if revisions is None else _REVISIONS.dump_python(revisions, mode="json"),
    }


def _decisions_table(model: str, decisions: list[Decision]) -> Table:
    table = Table(title=f"{model}: decisions", title_justify="left")
    for column in ("number", "when", "environment", "decision", "who", "evidence", "why"):
        table.add_column(column, overflow="fold")
    for each in decisions:
        table.add_row(
            str(each.number),
            f"{each.at:%Y-%m-%d %H:%M:%S %Z}",
            each.environment,
            each.kind.value,
            escape(each.who),
            short_digest(each.evidence) or "–",
            escape(each.why),
        )
    return table


def _revisions_table(title: str, revisions: list[Revision]) -> Table:
    table = Table(title=f"{title}: revisions", title_justify="left")
    for column in ("revision", "created", "status", "build", "on build", "description"):
        table.add_column(column, overflow="fold")
    for revision in revisions:
        table.add_row(
            str(revision.number),
            f"{revision.created:%Y-%m-%d %H:%M:%S %Z}",
            revision.status.value,
            revision.build.short,
            f"{revision.replicas}/{revision.capacity}",
            escape(revision.description),
        )
    return table
