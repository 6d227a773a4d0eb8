"""Verdicts on a deployment's replicas: are all running and ready, and does each answer."""

from collections.abc import Mapping, Sequence

from vllm_rollout.judge.diagnosis import Finding
from vllm_rollout.model.deployment import Replica
from vllm_rollout.model.units import counted, of_total
from vllm_rollout.model.verdict import (
    NoToken,
    NoWord,
    Outcome,
    Verdict,
    VerdictMethod,
    check,
    worst,
)

CACHE_REMEDY = (
    "Ask the servers past the cache: name their own address with --base-url or `service_url`, or "
    "let the gateway honour `Cache-Control: no-store`."
)


def replicas_verdict(
    replicas: Sequence[Replica], *, expected: int | None, findings: Sequence[Finding] = ()
) -> Verdict:
    """Pass if `expected` replicas exist and every replica that exists is Running and Ready.

    `expected` None means that nobody could say how many there should be: inconclusive. The
    `findings` of those that are not ready give the remedy.
    """
    ready = [r for r in replicas if r.ready and r.phase == "Running"]
    names = {r.name for r in ready}
    bad = [r for r in replicas if r.name not in names]
    if expected is None:
        return Verdict(
            outcome=Outcome.INCONCLUSIVE,
            reason="the release does not exist",
            remedy="Bring it there first: vllm-rollout deploy MODEL --values FILE for the first "
            "environment, gate-and-promote MODEL --to ENVIRONMENT for every other.",
        )
    holds = expected > 0 and len(ready) >= expected and not bad
    return Verdict(
        outcome=Outcome.PASS if holds else Outcome.FAIL,
        measured=float(len(ready)),
        limit=float(expected),
        n=len(replicas),
        unit="count",
        method=VerdictMethod.COMPARED,
        reason="; ".join(
            [f"{of_total(len(ready), expected, 'replica')} ready", *map(_problem, bad)]
        ),
        remedy="" if holds else _remedy(findings),
    )


def each_answers(found: Mapping[str, Verdict], *, noun: str = "replica", how: str = "") -> Verdict:
    """Pass if every one of `found` did; the reason counts them and names those that did not."""
    bad = {name: verdict for name, verdict in found.items() if not verdict.passed}
    count = f"{of_total(len(found) - len(bad), len(found), noun)}{how} answered"
    outcome = worst([verdict.outcome for verdict in found.values()])
    kind = Verdict
    if bad and all(isinstance(verdict, NoWord) for verdict in bad.values()):
        kind = NoWord
    elif len(bad) == len(found) and all(isinstance(verdict, NoToken) for verdict in bad.values()):
        kind = NoToken
    return kind(
        outcome=outcome,
        reason="; ".join([count, *(f"{name}: {verdict.reason}" for name, verdict in bad.items())]),
        n=len(found),
        remedy=next((v.remedy for v in bad.values() if v.outcome is outcome), ""),
    )


def cached_verdict(shown_by: str) -> Verdict:
    """Inconclusive: an answer that came from a cache shows nothing of the engine."""
    return check(
        None,
        f"the answer came from a cache, not from the engine ({shown_by})",
        remedy=CACHE_REMEDY,
    )


def _remedy(findings: Sequence[Finding]) -> str:
    """Return the remedy for each cause, once."""
    if not findings:
        return "Read the log of the replicas named: the last lines say why."
    advice = {finding.cause: finding.resolution for finding in findings}
    return " ".join(f"{cause.capitalize()}: {what}" for cause, what in advice.items())


def _problem(replica: Replica) -> str:
    words = [f"{replica.name} is {replica.phase}"]
    if replica.phase == "Running":
        words.append("but not ready")
    if replica.reason:
        words.append(f"({replica.reason})")
    if replica.restarts:
        words.append(f"after {counted(replica.restarts, 'restart')}")
    if replica.message:
        words.append(f"- {replica.message}")
    return " ".join(words)
