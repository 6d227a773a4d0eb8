"""Gate runs: which build the deployment ran, and one `GateRun` of what its gates found."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from vllm_rollout.judge.multiple_testing import judge_family
from vllm_rollout.model.deployment import Build, Deployment, images_of
from vllm_rollout.model.errors import RolloutError, UnreachableError
from vllm_rollout.model.evidence import URL_ONLY, GateResult, GateRun, read_evidence
from vllm_rollout.model.load_figures import LoadSummary
from vllm_rollout.model.verdict import Verdict
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.policy import Latency, Policy
from vllm_rollout.settings import Settings

ASKED_BEFORE = "asked-before.json"
"""Evidence of the run whose gates are asked again, beside theirs."""

_BUILD: TypeAdapter[Build | None] = TypeAdapter(Build | None)


def identity(platform: ReleaseReader | None, deployment: Deployment) -> dict[str, Any]:
    """Return revision, build and images that the deployment runs now, as JSON.

    Names what cannot be read, and which address did not answer.
    """
    nothing: dict[str, Any] = {"revision": None, "build": None, "images": []}
    if platform is None:
        return nothing
    try:
        history = platform.history(deployment)
        images = list(images_of(platform.replicas(deployment))) if history else []
    except RolloutError as error:
        return {**nothing, **_not_read(error)}
    if not history:
        return nothing
    newest = history[-1]
    return {
        "revision": newest.number,
        "build": _BUILD.dump_python(newest.build, mode="json"),
        "created": newest.created.isoformat(),
        "complete": newest.complete,
        "images": images,
    }


def identity_and_differences(
    platform: ReleaseReader | None, deployment: Deployment
) -> dict[str, Any]:
    """Return `identity`, and how what runs differs from what was rendered for that build."""
    found = identity(platform, deployment)
    if platform is None or found["build"] is None:
        return found
    try:
        differences = list(platform.running_differences(deployment))
    except RolloutError as error:
        return {**found, **_not_read(error)}
    return {**found, "differences": differences} if differences else found


def _not_read(error: RolloutError) -> dict[str, str]:
    """Fields of the identity of a deployment that cannot be read."""
    silent = {"unreachable": error.address} if isinstance(error, UnreachableError) else {}
    return {"unknown": str(error), **silent}


def latency_before(evidence_file: Path, latency: Latency) -> Verdict | None:
    """Return the verdict on a percentile of the load, in the run whose gates are asked again into
    `evidence_file`; None where they are not, or where it has none.
    """
    file = evidence_file.with_name(ASKED_BEFORE)
    if not file.exists():
        return None
    asked = (latency.percentile, latency.limit_seconds)
    return next(
        (
            verdict
            for gate in read_evidence(file).runs[-1].gates
            for verdict in gate.verdicts
            if gate.gate == "latency" and (verdict.percentile, verdict.limit) == asked
        ),
        None,
    )


def gate_run(
    settings: Settings,
    deployment: Deployment,
    *,
    base_url: str,
    identities: Sequence[Mapping[str, Any]],
    started: datetime,
    finished: datetime,
    expected: tuple[str, ...],
    results: Sequence[GateResult],
    loads: dict[str, LoadSummary],
) -> GateRun:
    """The run of gates that left `results`; `identities` are of before and after them, in order."""
    policy = settings.policy.for_model(deployment.model)
    created = identities[0].get("created")
    changed, unread = changed_unread(identities)
    return GateRun(
        deployment=deployment,
        base_url=base_url,
        platform=settings.platform.name if settings.platform else URL_ONLY,
        revision=identities[0]["revision"],
        build=_BUILD.validate_python(identities[0]["build"]),
        policy_digest=policy.digest,
        confidence=policy.confidence,
        family_risk=policy.family_risk,
        started=started,
        finished=finished,
        expected=expected,
        gates=_as_family(results, settings.judged_by(deployment.model)),
        loads=loads,
        changed=changed,
        unread=unread,
        images=tuple(sorted({image for found in identities for image in found["images"]})),
        revision_created=datetime.fromisoformat(created) if created else None,
    )


def address_of(settings: Settings, deployment: Deployment) -> str:
    """Return the deployment's address and how it is reached, for display, or why it is unknown."""
    try:
        return str(settings.route_to(deployment))
    except (RolloutError, OSError) as error:
        return f"unknown ({error})"


def _as_family(results: Sequence[GateResult], policy: Policy) -> tuple[GateResult, ...]:
    """The results with those fails made inconclusive that may be chance among so many gates."""
    verdicts = [verdict for result in results for verdict in result.verdicts]
    judged = iter(judge_family(verdicts, confidence=policy.confidence, method=policy.family_risk))
    return tuple(
        replace(result, verdicts=tuple(islice(judged, len(result.verdicts)))) for result in results
    )


def changed_unread(identities: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """Return `change`, and whether it only says what could not be read."""
    changed = change(identities)
    known = [each for each in identities if "unknown" not in each]
    return changed, bool(changed) and not change(known)


def change(identities: Sequence[Mapping[str, Any]]) -> str:
    """Return what changed while the gates ran, is not as rendered for the build, or could not be
    read; empty if nothing."""
    for found in identities:
        if different := found.get("differences"):
            return f"what runs is not what was rendered for the build: {'; '.join(different)}"
    for earlier, after in pairwise(identities):
        both = earlier["images"] and after["images"]  # not known for a moment is no change
        before = earlier if both else {**earlier, "images": after["images"]}
        if before != after:
            if unknown := after.get("unknown") or earlier.get("unknown"):
                return str(unknown)
            revisions = f"revision {before['revision']} became revision {after['revision']}"
            same = [(each["revision"], each.get("created")) for each in (before, after)]
            changes = [revisions] if same[0] != same[1] else []
            was, now = (_BUILD.validate_python(each["build"]) for each in (before, after))
            if was and now:
                changes += was.differences(now)
            if before["images"] != after["images"]:
                was_running, is_running = (", ".join(i["images"]) for i in (before, after))
                changes.append(f"images: {was_running} -> {is_running}")
            return f"while the gates ran, {'; '.join(changes) or 'a ramp began or ended'}"
    return next((i["unknown"] for i in identities if "unknown" in i), "")
