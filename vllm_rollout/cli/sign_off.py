"""`vllm-rollout sign-off`."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from vllm_rollout.cli import options
from vllm_rollout.model.deployment import newest_served
from vllm_rollout.model.errors import UsageError
from vllm_rollout.next_command import next_command, promote_command
from vllm_rollout.platform.reader import at_home
from vllm_rollout.platform.writer import writer_of
from vllm_rollout.rollout.audit_log import AuditLogReader
from vllm_rollout.rollout.evidence_store import find_evidence
from vllm_rollout.rollout.sign_offs import (
    SignOff,
    SignOffs,
    environment_after,
    last_gate_run,
    unusable,
    used,
)
from vllm_rollout.settings import Settings


@options.about_releases
def sign_off_command(
    model: options.Model,
    evidence: Annotated[
        str,
        typer.Option(
            "--evidence", metavar="DIGEST", help="as the report names it, or its beginning"
        ),
    ],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="who decides")],
    reject: Annotated[
        bool, typer.Option("--reject", help="reject it: this revision is refused")
    ] = False,
    note: Annotated[str, typer.Option("--note", help="why, for the record")] = "",
    *,
    choice: options.Choice,
) -> None:
    """Approve evidence of MODEL, so that gate-and-promote may take the build on, or reject it.

    Read the report first: what is signed is that one digest. It is refused for evidence that did
    not pass or was rolled back, is stale, has promoted before, or is about another build than the
    one that is deployed now. The name, and the account it came from, go into the model's chain of
    decisions; the last word counts.
    """
    settings = choice.settings()
    settings.deployment(model, settings.policy.order[0])  # refuses what is no name
    if not name.strip():
        raise UsageError("--as is empty", remedy="Give the name of who decides.")
    sign_off, run_id = _decided(settings, model, evidence, name, note, approved=not reject)
    following = environment_after(settings.policy, sign_off.environment)
    where = writer_of(at_home(settings.reader(), following))
    SignOffs(where.store, model).add(sign_off, run_id)
    options.say(
        f"{sign_off.environment}/{model} revision {sign_off.revision} {sign_off}\n"
        f"evidence {sign_off.evidence}"
    )
    if sign_off.approved:
        options.say("next: " + promote_command(model, following))


def _decided(
    settings: Settings, model: str, prefix: str, name: str, note: str, *, approved: bool
) -> tuple[SignOff, str]:
    platform, policy = settings.reader(), settings.policy.for_model(model)
    evidence = find_evidence(platform.store, model, prefix)
    digest = evidence.digest
    environment = next(
        (
            each
            for each in policy.order
            if policy.environments[each].sign_off and last_gate_run(evidence, each)
        ),
        None,
    )
    if environment is None:
        raise UsageError(
            f"evidence {digest} has no gates of an environment whose policy asks for sign_off",
            remedy=f"{next_command('gate-and-promote', model)} prints which evidence waits for it.",
        )
    if approved and evidence.unsignable:
        raise _refusal(model, digest, evidence.unsignable, approved=True)
    now = datetime.now(UTC)
    deployment = settings.deployment(model, environment)
    revision = newest_served(platform.history(deployment))
    if revision is None:
        raise UsageError(f"{deployment} is not deployed", remedy="There is nothing to sign off.")
    run = last_gate_run(evidence, environment)
    decisions = AuditLogReader(platform.store).whole(model)
    why = unusable(run, policy, environment, revision, now) or (used(run, decisions) if run else "")
    same = run is not None and run.is_about(revision)
    if why and (approved or not same):
        raise _refusal(model, digest, why, approved=approved)
    return (
        SignOff(
            evidence=digest,
            approved=approved,
            by=name.strip(),
            user=options.user_name(),
            at=now,
            note=note.strip(),
            environment=environment,
            revision=revision.number,
            build=revision.build.digest,
        ),
        evidence.run_id,
    )


def _refusal(model: str, digest: str, why: str, *, approved: bool) -> UsageError:
    return UsageError(
        f"evidence {digest} cannot be {'signed off' if approved else 'rejected'}: {why}",
        remedy=f"For fresh evidence: {next_command('gate-and-promote', model)}",
    )
