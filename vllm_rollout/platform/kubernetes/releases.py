"""History of a release, read from Helm, and what of its newest revision runs."""

import re
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from vllm_rollout.model.deployment import Deployment, Replica, Revision, RevisionStatus
from vllm_rollout.model.errors import UsageError
from vllm_rollout.platform.base import ForeignChangeError
from vllm_rollout.platform.kubernetes.composition import Rollout, read_pods, read_rollout
from vllm_rollout.platform.kubernetes.helm import Helm, HelmRevision, is_described
from vllm_rollout.platform.kubernetes.surge_plan import Pods
from vllm_rollout.platform.kubernetes.templates import Json

TRACK_LABEL = "vllm-rollout/track"
NOT_READY = "vllm-rollout: not ready"
"""Beginning of the description of the way back from a revision whose pods did not come up."""
_BACK = re.compile(rf"Rollback to \d+$|{NOT_READY}")
_NEVER_UP = re.compile(r'(Upgrade|Rollback|Release) ".*?" failed: ')
_Key = tuple[str, str, HelmRevision]


class Releases:
    """Reads releases; changes nothing. Every method raises as `command.run` does.

    `replicas` reads the pods of a deployment.
    """

    def __init__(
        self, helm: Helm, replicas: Callable[[Deployment], Sequence[Replica]] = lambda _: ()
    ) -> None:
        self._helm = helm
        self._replicas = replicas
        # Nothing of a revision changes but its status, which is part of the entry.
        self._read: dict[_Key, tuple[Rollout, Pods]] = {}
        self._manifests: dict[_Key, list[dict[str, Any]]] = {}

    def entries(self, deployment: Deployment) -> list[HelmRevision]:
        """Helm's own history, oldest first; empty when the release does not exist.

        A revision that never came up has failed, though Helm calls it superseded once a rollback
        from it has failed as well.
        """
        found = self._helm.history(deployment.release, namespace=deployment.namespace)
        return [
            entry.model_copy(update={"status": "failed"})
            if entry.status == "superseded" and _NEVER_UP.match(entry.description)
            else entry
            for entry in found
        ]

    def served(
        self, deployment: Deployment, entries: Sequence[HelmRevision]
    ) -> HelmRevision | None:
        """Return the revision that serves, by the builds of the pods; None if none is known to.

        It is the one that Helm calls deployed, as long as there are pods of its build. Else it is
        the newest that once came up whose build the ready pods run: after a rollback that failed
        Helm calls none deployed, and after `kubectl rollout undo` one that is gone.
        """
        deployed = next((e for e in reversed(entries) if e.status == "deployed"), None)
        if not entries:
            return None
        replicas = self._replicas(deployment)
        running = {replica.build for replica in replicas if replica.ready and replica.build}
        there = {replica.build for replica in replicas}
        if deployed is not None and (
            not running or self.rollout(deployment, deployed).digest in there
        ):
            return deployed
        for entry in reversed(entries):
            once_up = entry.status in ("deployed", "superseded")
            if once_up and self.rollout(deployment, entry).digest in running:
                return entry
        return deployed

    def to_return_to(
        self, deployment: Deployment, entries: Sequence[HelmRevision]
    ) -> HelmRevision | None:
        """Return the revision that serves, else the newest that once came up.

        One that somebody went back from at once need not have, though Helm called it deployed:
        Helm 3 does so with 0 of 1 pods where maxUnavailable allows it.
        """
        once_up = [
            entry
            for entry, after in zip_longest(entries, entries[1:])
            if entry.status == "superseded"
            if after is None or not _BACK.match(after.description)
        ]
        return self.served(deployment, entries) or next(reversed(once_up), None)

    def rollout(self, deployment: Deployment, entry: HelmRevision) -> Rollout:
        """Return the rollout of that revision."""
        return self._known(deployment, entry)[0]

    def pods(self, deployment: Deployment, entry: HelmRevision) -> Pods:
        """Return how many pods of each track that revision asks for."""
        return self._known(deployment, entry)[1]

    def manifest(self, deployment: Deployment, entry: HelmRevision) -> Sequence[Json]:
        """Return the objects of that revision."""
        key = (deployment.namespace, deployment.release, entry)
        if key not in self._manifests:
            self._manifests[key] = self._helm.manifest(
                deployment.release, entry.revision, namespace=deployment.namespace
            )
        return self._manifests[key]

    def _known(self, deployment: Deployment, entry: HelmRevision) -> tuple[Rollout, Pods]:
        key = (deployment.namespace, deployment.release, entry)
        if key not in self._read:
            values = self._helm.values(
                deployment.release, entry.revision, namespace=deployment.namespace
            )
            rollout = read_rollout(values, chart=entry.chart)
            self._read[key] = rollout, read_pods(values, rollout)
        return self._read[key]

    def stable_pod_template(self, deployment: Deployment, entry: HelmRevision) -> dict[str, Any]:
        """The pod template of the Deployment that runs all pods but the canary's.

        Raises:
            UsageError: the revision has no such Deployment, or several.
        """
        found = stable_templates(self.manifest(deployment, entry))
        if len(found) != 1:
            raise UsageError(
                f"revision {entry.revision} of {deployment.release} has {len(found)} Deployments "
                f"with the label {TRACK_LABEL}=stable, so its pods cannot be kept beside a canary",
                remedy="Roll out once in one step (`ramp: [{share: 100%}]`).",
            )
        return found[0]


def stable_templates(objects: Sequence[Json]) -> list[dict[str, Any]]:
    """The pod templates of the Deployments that run all pods but the canary's."""
    return [
        each["spec"]["template"]
        for each in objects
        if each["kind"] == "Deployment"
        and each["metadata"].get("labels", {}).get(TRACK_LABEL) == "stable"
    ]


def refuse_foreign(
    deployment: Deployment, entries: Sequence[HelmRevision], *, since: int, description: str
) -> None:
    """Return if all revisions after `since` were made for a change of this `description`.

    Helm lets a rollback pass an upgrade that still waits for its pods.

    Raises:
        ForeignChangeError: somebody else has made one that came up.
    """
    for each in entries:
        came_up = each.revision > since and each.status in ("deployed", "superseded")
        if came_up and not is_described(each.description, description):
            raise ForeignChangeError(
                f"Somebody else has changed {deployment} meanwhile, and that stays: it has "
                f"revision {each.revision}, {each.description!r}",
                remedy="When they are done, start this again.",
            )


def revision_of(entry: HelmRevision, rollout: Rollout, *, serves: bool) -> Revision:
    """The suite's revision for Helm's; the one that `serves` is deployed."""
    status = RevisionStatus.FAILED
    if entry.status in ("deployed", "superseded"):
        status = RevisionStatus.DEPLOYED if serves else RevisionStatus.SUPERSEDED
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
