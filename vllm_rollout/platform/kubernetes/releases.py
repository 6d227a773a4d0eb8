"""History of a release, read from Helm."""

from collections.abc import Sequence
from typing import Any

from vllm_rollout.model.deployment import Deployment, Revision, RevisionStatus
from vllm_rollout.model.errors import UsageError
from vllm_rollout.platform.kubernetes.composition import Rollout, read_pods, read_rollout
from vllm_rollout.platform.kubernetes.helm import Helm, HelmRevision
from vllm_rollout.platform.kubernetes.surge_plan import Pods

TRACK_LABEL = "vllm-rollout/track"


class Releases:
    """Reads releases; changes nothing. Every method raises as `command.run` does."""

    def __init__(self, helm: Helm) -> None:
        self._helm = helm
        self._read: dict[tuple[str, str, HelmRevision], tuple[Rollout, Pods]] = {}

    def entries(self, deployment: Deployment) -> list[HelmRevision]:
        """Helm's own history, oldest first; empty when the release does not exist."""
        return self._helm.history(deployment.release, namespace=deployment.namespace)

    def rollout(self, deployment: Deployment, entry: HelmRevision) -> Rollout:
        """Return the rollout of that revision."""
        return self._known(deployment, entry)[0]

    def pods(self, deployment: Deployment, entry: HelmRevision) -> Pods:
        """Return how many pods of each track that revision asks for."""
        return self._known(deployment, entry)[1]

    def _known(self, deployment: Deployment, entry: HelmRevision) -> tuple[Rollout, Pods]:
        # A revision's values never change; its status does, and is part of the entry.
        key = (deployment.namespace, deployment.release, entry)
        if key not in self._read:
            values = self._helm.values(
                deployment.release, entry.revision, namespace=deployment.namespace
            )
            rollout = read_rollout(values, chart=entry.chart)
            self._read[key] = rollout, read_pods(values, rollout)
        return self._read[key]

    def stable_pod_template(self, deployment: Deployment, revision: int) -> dict[str, Any]:
        """The pod template of the Deployment that runs all pods but the canary's.

        Raises:
            UsageError: the revision has no such Deployment, or several.
        """
        manifest = self._helm.manifest(deployment.release, revision, namespace=deployment.namespace)
        found: list[dict[str, Any]] = [
            document["spec"]["template"]
            for document in manifest
            if document["kind"] == "Deployment"
            and document["metadata"].get("labels", {}).get(TRACK_LABEL) == "stable"
        ]
        if len(found) != 1:
            raise UsageError(
                f"revision {revision} of {deployment.release} has {len(found)} Deployments with "
                f"the label {TRACK_LABEL}=stable, so its pods cannot be kept beside a canary",
                remedy="Roll out once in one step (`ramp: [{share: 100%}]`).",
            )
        return found[0]


def newest_served(entries: Sequence[HelmRevision]) -> HelmRevision | None:
    """The newest revision that was brought up whole: deployed, else superseded."""
    for status in ("deployed", "superseded"):
        for entry in reversed(entries):
            if entry.status == status:
                return entry
    return None


def revision_of(entry: HelmRevision, rollout: Rollout) -> Revision:
    """The suite's revision for Helm's."""
    status = {
        "deployed": RevisionStatus.DEPLOYED,
        "superseded": RevisionStatus.SUPERSEDED,
    }.get(entry.status, RevisionStatus.FAILED)
    if entry.status.startswith("pending"):
        status = RevisionStatus.PENDING
    return Revision(
        number=entry.revision,
        build=rollout.build,
        status=status,
        created=entry.updated,
        description=entry.description,
        replicas=rollout.replicas,
        capacity=rollout.capacity,
    )
