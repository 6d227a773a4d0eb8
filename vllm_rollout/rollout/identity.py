"""Whose word a sign-off is: a name alone, a key's signature or a CI's token, proved at each use.

What is signed names one decision: evidence, model, environment, approve or reject, and time. A
signature that was copied to another decision proves nothing there, and a word that is not later
than the last about the same evidence is a replay of it.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

from vllm_rollout.model.errors import UsageError
from vllm_rollout.policy import Policy, SignOff
from vllm_rollout.policy.signing import Oidc
from vllm_rollout.rollout.audit_log import Decision, DecisionKind, who_of
from vllm_rollout.rollout.ci_token import ReadKeys, read_keys, verified_claims
from vllm_rollout.rollout.ssh_signature import (
    UnprovedError,
    fingerprint,
    name_of_key,
    verified_key,
)
from vllm_rollout.variables import secret_from

PURPOSE = "vllm-rollout-sign-off"
"""The namespace of a sign-off's signature: `ssh-keygen -Y sign -n vllm-rollout-sign-off`."""
_WORDS = {DecisionKind.SIGN_OFF: "approve", DecisionKind.REJECTION: "reject"}


@dataclass(frozen=True, slots=True)
class Proof:
    """By what a word is whose it says: `how`, in words; or why it does not count, `problem`."""

    how: str = ""
    problem: str = ""


def statement(decision: Decision) -> bytes:
    """The bytes that a key signs: a line for each thing that the decision is about."""
    lines = [
        "vllm-rollout sign-off 1",
        f"evidence: {decision.evidence}",
        f"model: {decision.model}",
        f"environment: {decision.environment}",
        f"decision: {_WORDS[decision.kind]}",
        f"at: {decision.at.astimezone(UTC).isoformat()}",
        f"note: {json.dumps(decision.why)}",
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def time_of(text: bytes) -> datetime:
    """Return the time that a statement names.

    Raises:
        UsageError: it is no statement.
    """
    found = re.search(rb"(?m)^at: (\S+)$", text)
    try:
        at = datetime.fromisoformat(found[1].decode() if found else "")
    except ValueError as error:
        raise UsageError("it is no statement", remedy="--statement prints one.") from error
    return at.replace(tzinfo=at.tzinfo or UTC)


def audience(rules: Oidc, decision: Decision) -> str:
    """The `aud` that a token has to have, which binds it to this one decision."""
    words = (rules.audience, _WORDS[decision.kind], decision.model, decision.environment)
    return "/".join((*words, decision.evidence))


def ci_token(rules: Oidc) -> str:
    """Return the token of who signs.

    Raises:
        UsageError: there is none.
    """
    return secret_from(rules.token_env, rules.token_file, "the CI's token")


def who(decision: Decision, rules: SignOff) -> tuple[str, str]:
    """Return the name, and the key or subject, that a signed word is by.

    Raises:
        UnprovedError: it is not proved; the text says why.
        UnreachableError: the issuer's keys cannot be had.
    """
    name, account, _ = _signer(decision, rules, read_keys)
    return name, account


def proofs(decisions: Iterable[Decision], policy: Policy) -> dict[int, Proof]:
    """The proof of each sign-off and rejection, by its number, as the policy asks for it now.

    Raises:
        UnreachableError: the issuer's keys cannot be had, and a token is to be proved.
    """
    found: dict[int, Proof] = {}
    last: dict[tuple[str, str], tuple[datetime, Decision]] = {}
    read = cache(read_keys)
    for each in decisions:
        if each.kind not in _WORDS:
            continue
        environment = policy.environments.get(each.environment)
        rules = environment and environment.sign_off
        if not rules or rules.identity == "name":
            found[each.number] = Proof("name alone")
            continue
        about = (each.environment, each.evidence)
        try:
            name, account, at = _signer(each, rules, read)
        except UnprovedError as error:
            found[each.number] = Proof(problem=str(error))
            continue
        earlier, signer = last.get(about), who_of(name, account)
        if each.who != signer:
            problem = f"it is signed by {signer}, and not by {each.who}"
        elif earlier is not None and at <= earlier[0]:
            problem = f"it is a replay: {earlier[1]} was signed then or later"
        else:
            problem, last[about] = "", (at, each)
        kind = "key" if rules.identity == "key" else "token of"
        found[each.number] = Proof(problem=problem) if problem else Proof(f"{kind} {account}")
    return found


def unproved(decisions: Iterable[Decision], policy: Policy) -> list[str]:
    """A line for each word since the last promotion that the policy asks a proof of, and has none.

    Raises: as `proofs`.
    """
    every: list[Decision] = []
    for each in decisions:
        every = [] if each.kind is DecisionKind.PROMOTION else [*every, each]
    found = proofs(every, policy)
    return [
        f"{each} is not proved: {found[each.number].problem}"
        for each in every
        if each.number in found and found[each.number].problem
    ]


def _signer(decision: Decision, rules: SignOff, read: ReadKeys) -> tuple[str, str, datetime]:
    """Return name, key or subject, and time of a signed word; raises as `who`."""
    if not decision.signature:
        wanted = "the signature of a key" if rules.identity == "key" else "a CI's token"
        raise UnprovedError(f"it is by name alone, and the policy asks for {wanted}")
    if rules.identity == "key":
        key = verified_key(decision.signature, statement(decision), PURPOSE)
        return name_of_key(key, rules.keys), fingerprint(key), decision.at
    if rules.oidc is None:
        raise UnprovedError("the policy names no issuer of tokens")
    wanted = audience(rules.oidc, decision)
    if decision.why:
        raise UnprovedError("it has a note, which no token holds")
    claims = verified_claims(decision.signature, wanted, rules.oidc, decision.at, read)
    return claims.name, claims.subject, claims.issued
