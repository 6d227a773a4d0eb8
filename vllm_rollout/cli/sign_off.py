"""`vllm-rollout sign-off`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from vllm_rollout.cli import options
from vllm_rollout.model.deployment import newest_served
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.text import printable
from vllm_rollout.next_command import next_command, promote_command
from vllm_rollout.platform.reader import at_home
from vllm_rollout.platform.writer import writer_of
from vllm_rollout.policy import SignOff as Rules
from vllm_rollout.rollout.audit_log import AuditLogReader, Decision
from vllm_rollout.rollout.evidence_store import find_evidence, unsigned
from vllm_rollout.rollout.identity import PURPOSE, audience, ci_token, proofs, time_of, who
from vllm_rollout.rollout.identity import statement as statement_of
from vllm_rollout.rollout.sign_offs import (
    SignOff,
    SignOffs,
    environment_after,
    last_gate_run,
    unusable,
    used,
)
from vllm_rollout.rollout.ssh_signature import sign
from vllm_rollout.settings import Settings

_LONGEST = 65_536


@options.about_releases
def sign_off_command(
    model: options.Model,
    evidence: Annotated[
        str,
        typer.Option(
            "--evidence", metavar="DIGEST", help="as the report names it, or its beginning"
        ),
    ],
    name: Annotated[
        str, typer.Option("--as", metavar="NAME", help="who decides, where no signature says so")
    ] = "",
    reject: Annotated[
        bool, typer.Option("--reject", help="reject it: this revision is refused")
    ] = False,
    note: Annotated[str, typer.Option("--note", help="why, for the record")] = "",
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="sign by this Ed25519 private key")
    ] = None,
    statement: Annotated[
        bool, typer.Option("--statement", help="print what is to be signed, and decide nothing")
    ] = False,
    signed: Annotated[
        Path | None,
        typer.Option("--signed", metavar="FILE", help="the statement, its signature in FILE.sig"),
    ] = None,
    *,
    choice: options.Choice,
) -> None:
    """Approve evidence of MODEL, so that gate-and-promote may take the build on, or reject it.

    Read the report first: what is signed is that one digest. It is refused for evidence that did
    not pass or was rolled back, is stale, has promoted before, or is about another build than the
    one that is deployed now. The name, and the account it came from, go into the model's chain of
    decisions; the last word counts.

    Where the policy asks for a key, sign by --key, or by ssh-keygen -Y sign -n
    vllm-rollout-sign-off what --statement has printed. Where it asks for a CI's token, --statement
    prints the audience that the token must have.
    """
    settings = choice.settings()
    settings.deployment(model, settings.policy.order[0])  # refuses what is no name
    policy = settings.policy.for_model(model)
    pending = _pending(settings, model, evidence, note, approved=not reject)
    given = _Given(name.strip(), key, signed)
    if statement:
        word = pending.sign_off.as_decision(model)
        typer.echo(_to_sign(word, pending.rules), nl=False)
        return
    sign_off = _by_whom(pending, model, given)
    number = len(pending.decisions) + 1
    word = sign_off.as_decision(model, number)
    proof = proofs([*pending.decisions, word], policy)[number]
    if proof.problem:
        raise UsageError(f"the sign-off would not count: {proof.problem}")
    sign_off = replace(sign_off, how=proof.how)
    following = environment_after(policy, sign_off.environment)
    where = writer_of(at_home(settings.reader(), following))
    SignOffs(where.store, model).add(sign_off, pending.run_id)
    options.say(
        f"{sign_off.environment}/{model} revision {sign_off.revision} {sign_off}\n"
        f"evidence {sign_off.evidence}"
    )
    if sign_off.approved:
        options.say("next: " + promote_command(model, following))


@dataclass(frozen=True, slots=True)
class _Given:
    """By whom the word is, as the command line says."""

    name: str
    key: Path | None
    signed: Path | None


@dataclass(frozen=True, slots=True)
class _Pending:
    """A word of which is not known yet whose it is; and the chain that it is to be added to."""

    sign_off: SignOff
    rules: Rules
    decisions: Sequence[Decision]
    run_id: str


def _to_sign(word: Decision, rules: Rules) -> str:
    if rules.oidc is not None and rules.identity == "oidc":
        return audience(rules.oidc, word) + "\n"
    if rules.identity == "key":
        return statement_of(word).decode()
    raise UsageError("the policy asks for no signature", remedy="Say who decides: --as NAME.")


def _by_whom(pending: _Pending, model: str, given: _Given) -> SignOff:
    """Return the word with whose it is, and what proves that."""
    sign_off, rules = pending.sign_off, pending.rules
    if rules.identity != "key" and (given.key or given.signed):
        raise UsageError(f"no key signs here: sign_off.identity is {rules.identity}")
    if rules.identity == "name":
        if not given.name:
            raise UsageError("--as is empty", remedy="Give the name of who decides.")
        return replace(sign_off, by=given.name, user=options.user_name())
    if rules.oidc is not None and rules.identity == "oidc":
        sign_off = replace(sign_off, signature=ci_token(rules.oidc))
    else:
        sign_off = _signed(sign_off, model, given)
    by, user = who(sign_off.as_decision(model), rules)
    if given.name not in ("", by):
        raise UsageError(f"--as {given.name}: the signature is by {by}", remedy="Leave --as out.")
    return replace(sign_off, by=by, user=user)


def _signed(sign_off: SignOff, model: str, given: _Given) -> SignOff:
    """Return the word with a key's signature, made here or by ssh-keygen."""
    if given.key is not None:
        text = statement_of(sign_off.as_decision(model))
        return replace(sign_off, signature=sign(_read(given.key, "the key "), text, PURPOSE))
    if given.signed is None:
        raise UsageError(
            "the policy asks for the signature of a key",
            remedy="Sign by --key FILE; or print with --statement what ssh-keygen -Y sign -n "
            f"{PURPOSE} is to sign, and give it as --signed FILE.",
        )
    text, signature = _read(given.signed), _read(Path(f"{given.signed}.sig"))
    sign_off = replace(sign_off, at=time_of(text), signature=signature.decode(errors="replace"))
    if statement_of(sign_off.as_decision(model)) != text:
        raise UsageError(
            f"{given.signed} is not the statement of this decision",
            remedy="Give the same --evidence, --note and --reject as with --statement.",
        )
    return sign_off


def _read(path: Path, what: str = "") -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST)
    except OSError as error:
        raise UsageError(f"{what}{path} cannot be read: {error.strerror}") from error


def _pending(settings: Settings, model: str, prefix: str, note: str, *, approved: bool) -> _Pending:
    platform, policy = settings.reader(), settings.policy.for_model(model)
    evidence = find_evidence(platform.store, model, prefix)
    digest = evidence.digest
    environment, rules = next(
        (
            (each, rules)
            for each in policy.order
            if (rules := policy.environments[each].sign_off) and last_gate_run(evidence, each)
        ),
        ("", None),
    )
    if rules is None:
        raise UsageError(
            f"evidence {digest} has no gates of an environment whose policy asks for sign_off",
            remedy=f"{next_command('gate-and-promote', model)} prints which evidence waits for it.",
        )
    why = unsigned(platform.store, policy.evidence, model, digest) or evidence.unsignable
    if approved and why:
        raise _refusal(model, digest, why, approved=True)
    now = datetime.now(UTC)
    deployment = settings.deployment(model, environment)
    revision = newest_served(platform.history(deployment))
    if revision is None:
        raise UsageError(f"{deployment} is not deployed", remedy="There is nothing to sign off.")
    run = last_gate_run(evidence, environment)
    # The chain that it is added to: that of the promotion which it opens.
    chain = at_home(platform, environment_after(policy, environment)).store
    decisions = AuditLogReader(chain).whole(model)
    why = unusable(run, policy, environment, revision, now) or (used(run, decisions) if run else "")
    same = run is not None and run.is_about(revision)
    if why and (approved or not same):
        raise _refusal(model, digest, why, approved=approved)
    sign_off = SignOff(
        evidence=digest,
        approved=approved,
        by="",
        user="",
        at=now,
        # As it is kept: what is signed is the same text.
        note=printable(note.strip()),
        environment=environment,
        revision=revision.number,
        build=revision.build.digest,
        run=run,
    )
    return _Pending(sign_off, rules, decisions, evidence.run_id)


def _refusal(model: str, digest: str, why: str, *, approved: bool) -> UsageError:
    return UsageError(
        f"evidence {digest} cannot be {'signed off' if approved else 'rejected'}: {why}",
        remedy=f"For fresh evidence: {next_command('gate-and-promote', model)}",
    )
