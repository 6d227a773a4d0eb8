"""Fields of a release that somebody else has set: named, and refused before a change."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_rollout.model.deployment import Deployment, canonical_digest
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.platform.base import ForeignChangeError, LiveObjects, paused_objects
from vllm_rollout.platform.kubernetes.autoscaling import MANAGER, Scale
from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.platform.kubernetes.releases import Releases
from vllm_rollout.platform.kubernetes.templates import Json, without_hooks

_AUTOSCALER = "set by kube-controller-manager"
_OURS = f" is set by {MANAGER}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignFields:
    """Fields of a release that others have set.

    `conflicts` names those of some objects, `live` what runs the release's pods now.
    """

    helm: Helm
    releases: Releases
    conflicts: Callable[[Deployment, Sequence[Mapping[str, Any]]], Sequence[str]]
    live: Callable[[Deployment], LiveObjects]

    def of_revision(self, deployment: Deployment, revision: int | None) -> Sequence[str]:
        """Return the fields of `revision` that somebody else has set; of the newest (None) without
        those of autoscalers, which set them all the time."""
        if revision is not None:
            where = deployment.namespace
            manifest: Sequence[Json] = self.helm.manifest(
                deployment.release, revision, namespace=where
            )
        elif entries := self.releases.entries(deployment):
            manifest = self.releases.manifest(deployment, entries[-1])
        else:
            return []
        found = [*self.conflicts(deployment, manifest), *paused_objects(self.live(deployment))]
        if revision is not None:
            return found
        return [line for line in found if _AUTOSCALER not in line and not line.endswith(_OURS)]

    def taken_by(self, deployment: Deployment, revision: int) -> str:
        """End of a sentence that names the fields which a return to `revision` takes; or ""."""
        try:
            found = self.of_revision(deployment, revision)
        except RolloutError:  # the rollback does not depend on it
            return ""
        return f", over what was set since: {'; '.join(found)}" if found else ""

    def refuse(
        self, deployment: Deployment, revisions: Sequence[Sequence[Json]], scale: Scale | None
    ) -> bool:
        """Return if Helm can apply all of these, each with its objects.

        Returns whether it takes fields that the suite itself has set, by `Autoscaling.set_pods`.

        Raises:
            ForeignChangeError: it would fail half way, at fields that somebody else has set, or for
                ever, at a Deployment that somebody has paused.
        """
        conflicts = self._conflicts_of(deployment, revisions) if self.helm.forcing else {}
        ours = {line for line in conflicts if line.endswith(_OURS)}
        scaled = scale.fields if scale else ()
        found = dict.fromkeys(paused_objects(self.live(deployment)))
        found |= {
            line: None for line in conflicts if not line.startswith(scaled) and line not in ours
        }
        if found:
            raise ForeignChangeError(
                f"{deployment} is not changed, as somebody else has changed it: {'; '.join(found)}",
                remedy="Put that into the values of the deployment, or take it back: a rollback "
                "does. `kubernetes.field_conflicts: overwrite` lets each rollout do so.",
            )
        return bool(ours)

    def _conflicts_of(
        self, deployment: Deployment, revisions: Sequence[Sequence[Json]]
    ) -> dict[str, None]:
        # A ramp's first step may keep what somebody set, and fail at it in the next one.
        entries = self.releases.entries(deployment)
        applied = [entry for entry in entries if entry.status == "deployed"]
        found: dict[str, None] = {}
        for entry in applied[-1:]:
            manifest = self.releases.manifest(deployment, entry)
            found |= dict.fromkeys(self.conflicts(deployment, manifest))
        # Most objects are the same in all of them.
        objects = {canonical_digest(o): o for made in revisions for o in without_hooks(made)}
        return found | dict.fromkeys(self.conflicts(deployment, list(objects.values())))
