"""Changes of releases by Helm: to a target, back to a revision, out of what is half done."""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from vllm_rollout.model.deployment import Deployment, Target
from vllm_rollout.model.errors import DeployError, RolloutError, UnreachableError, UsageError
from vllm_rollout.model.preflight_facts import Admission
from vllm_rollout.model.symptoms import Symptoms
from vllm_rollout.next_command import next_command
from vllm_rollout.platform.base import NotReadyError
from vllm_rollout.platform.kubernetes.admission import refuse_inadmissible
from vllm_rollout.platform.kubernetes.autoscaling import (
    Autoscaling,
    Scale,
    counted,
    refuse_resets,
    unnumbered,
)
from vllm_rollout.platform.kubernetes.build import Builds, check_same
from vllm_rollout.platform.kubernetes.change_time import change_time
from vllm_rollout.platform.kubernetes.chart import admit, copied, load_chart
from vllm_rollout.platform.kubernetes.composition import OWN_VALUES
from vllm_rollout.platform.kubernetes.foreign_fields import ForeignFields
from vllm_rollout.platform.kubernetes.helm import Helm, HelmRevision
from vllm_rollout.platform.kubernetes.moves import Moves
from vllm_rollout.platform.kubernetes.pod_wait import PodWait, ReadinessOf
from vllm_rollout.platform.kubernetes.releases import NOT_READY, Releases, refuse_foreign
from vllm_rollout.platform.kubernetes.templates import Json
from vllm_rollout.platform.kubernetes.value_files import write_values

_LOOK_SECONDS = 0.5
_NOT_READY = "The diagnosis of its pods says what each of them needs."


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Changes of releases of one chart. The fields are those of `KubernetesPlatform`.

    `symptoms` says what is known of a deployment's pods, `readiness` how many of those that some
    objects ask for are Ready, `anything_left` whether one that is being removed still has any of
    them, or what makes them, and `admission` what the API server answers to objects in a dry run.
    `overwrite` takes the fields of others in an upgrade, too.
    """

    helm: Helm
    releases: Releases
    builds: Builds
    moves: Moves
    foreign: ForeignFields
    symptoms: Callable[[Deployment], Sequence[Symptoms]]
    readiness: ReadinessOf
    anything_left: Callable[[Deployment], bool]
    admission: Callable[[Deployment, Sequence[Json]], Admission]
    autoscaling: Autoscaling
    overwrite: bool = False

    def apply(
        self, deployment: Deployment, target: Target, *, description: str, timeout: timedelta
    ) -> None:
        """Bring the release to `target` and wait until all pods that it asks for are Ready.

        A ramp step takes several revisions, one for each move of `surge_plan`, so that pods leave
        only when those in their place are ready. A pod has `timeout`, one after the other where a
        move replaces them so (see `ChangeTime`). When a move's pods are not ready by then, the
        release goes back to the revision that served before (which may take as long again), and
        the failed one stays in the history.

        Raises:
            ForeignChangeError: somebody else has set fields that Helm would set, and the move that
                finds it changes nothing; or has made a revision meanwhile, which stays.
            NotReadyError: not ready; it has what was known of the pods while they were there.
            DeployError: Helm refused, or the API server would, of which nothing is changed; or the
                chart is not the one `target.build` was made of.
            UsageError: the chart, its values or the overlay are wrong, or the chart knows no ramp.
            UnreachableError: Helm or the cluster did not answer.
        """
        entries = self.releases.entries(deployment)
        served = self.releases.to_return_to(deployment, entries)
        with tempfile.TemporaryDirectory(prefix="vllm-rollout-") as folder:
            # A copy, so that what is compared with the target is what Helm then reads.
            path = copied(self.builds.chart, Path(folder))
            # Read before the schema is opened, which is no change of the chart.
            chart = load_chart(path)
            admit(path, OWN_VALUES)
            made = self.builds.make(deployment, target.values, chart=path)
            check_same(target.build, replace(made, chart_digest=chart.digest))
            values = self.builds.files.write(Path(folder), chart, deployment, target.values)
            scale = self.autoscaling.scale(deployment)
            target = scale.of(target) if scale else target
            start = self.moves.start(deployment, served, scale)
            moves = self.moves.values(deployment, target, served, start, ramps=chart.ramps)
            revisions = [
                write_values(Path(folder) / f"revision-{number}.yaml", move)
                for number, move in enumerate(moves, start=1)
            ]
            rendered = self.moves.rendered(deployment, target, path, moves, revisions)
            refuse_inadmissible(
                deployment, self.admission(deployment, [o for made in rendered for o in made])
            )
            before = self._newest(deployment, entries)
            refuse_resets(deployment, rendered, scale)
            scaled = any(map(unnumbered, rendered))
            stable = [start.stable if start else 0, *(move["replicaCount"] for move in moves)]
            for number, revision in enumerate(revisions, start=1):
                more = f", move {number} of {len(moves)}" if number < len(moves) else ""
                objects = rendered[number - 1]
                ours = self._own_fields(deployment, rendered[number - 1 :], scale)
                claims = scaled and number == 1 and self._claims(deployment, served)
                pods = stable[number - 1], stable[number]
                time_of = change_time(counted(objects, pods[1]), counted(before, pods[0]))
                self._upgrade(
                    deployment,
                    path,
                    [*values, revision],
                    objects,
                    since=entries[-1].revision if entries else 0,
                    description=description,
                    more=more,
                    served=served,
                    timeout=timeout,
                    limit=time_of.limit(timeout),
                    stable=pods if scaled else None,
                    force=self.overwrite or claims or ours,
                )
                before = objects

    def rollback(
        self, deployment: Deployment, revision: int, *, description: str, timeout: timedelta
    ) -> None:
        """Make a new revision with the state of `revision` and wait until its pods are ready.

        Fields that somebody else has set are taken. Raises: as `apply`, ForeignChangeError
        excepted.
        """
        try:
            self._go_back(deployment, revision, description, timeout)
        except DeployError as error:
            raise NotReadyError(
                str(error), symptoms=self._known(deployment), remedy=error.remedy or _NOT_READY
            ) from error

    @property
    def _wait(self) -> PodWait:
        def still_allowed() -> None:
            guard = self.helm.guard
            if guard is not None and not guard.seconds_left():
                guard.ensure()

        return PodWait(readiness=self.readiness, still_allowed=still_allowed)

    def _newest(self, deployment: Deployment, entries: Sequence[HelmRevision]) -> Sequence[Json]:
        """The objects of the newest revision; none where nothing is deployed."""
        return self.releases.manifest(deployment, entries[-1]) if entries else ()

    def uninstall(self, deployment: Deployment, *, timeout: timedelta) -> None:
        """Remove the release and its history, and wait until its pods are gone."""
        until = time.monotonic() + timeout.total_seconds()
        try:
            self.helm.uninstall(deployment.release, namespace=deployment.namespace, timeout=timeout)
        except DeployError:
            # Helm 4 may look whether objects are gone before it has heard of each of them, and says
            # that they are still there: it has forgotten the release by then.
            if self.releases.entries(deployment):
                raise
            while self.anything_left(deployment):
                if time.monotonic() >= until:
                    raise
                time.sleep(_LOOK_SECONDS)

    def recover(self, deployment: Deployment, *, timeout: timedelta) -> str:
        """Clear a `pending-*` revision that a killed client left; say what was found, or "".

        Only for the holder of the model's lease: Helm cannot tell a dead client from a slow one.

        Raises:
            DeployError: no revision is known to have served.
        """
        entries = self.releases.entries(deployment)
        if not entries or not entries[-1].status.startswith("pending"):
            return ""
        pending = entries[-1]
        found = (
            f"{deployment.release} revision {pending.revision} was left {pending.status} "
            f"since {pending.updated:%Y-%m-%d %H:%M:%S %Z}"
        )
        served = self.releases.to_return_to(deployment, entries)
        if served is not None:
            description = f"vllm-rollout recovery: back to revision {served.revision}"
            taken = self.foreign.taken_by(deployment, served.revision)
            self._go_back(deployment, served.revision, description, timeout)
            return f"{found}; rolled back to revision {served.revision}{taken}"
        if pending.status == "pending-install":
            self.uninstall(deployment, timeout=timeout)
            return f"{found}; nothing had served before, so it was uninstalled"
        where = (deployment.release, "-n", deployment.namespace)
        raise DeployError(
            f"{found}, and no earlier revision was ever deployed",
            remedy=f"Look at `{next_command('helm', 'history', *where)}` and "
            "uninstall the release if it serves nobody.",
        )

    def _own_fields(
        self, deployment: Deployment, revisions: Sequence[Sequence[Json]], scale: Scale | None
    ) -> bool:
        """Return whether Helm is to take fields that the suite itself has set.

        Raises: as `ForeignFields.refuse`, unless the fields of others are overwritten.
        """
        if self.overwrite:
            self.autoscaling.resume(deployment)
            return False
        return self.foreign.refuse(deployment, revisions, scale)

    def _claims(self, deployment: Deployment, served: HelmRevision | None) -> bool:
        """Keep the number of pods that the release names now, and will not name any more.

        Returns whether there is one. Helm 4 leaves it to those who have claimed it.

        Raises:
            UsageError: Helm 3 would bring the release to one pod.
        """
        if served is None:
            return False
        if unnumbered(self.releases.manifest(deployment, served)):
            return False
        pods = self.autoscaling.pods(deployment)
        if pods > 1 and not self.helm.forcing:
            raise UsageError(
                f"{deployment} would fall from {pods} pods to 1: its chart leaves their number to "
                "an autoscaler from now on, and Helm 3 takes it away first",
                remedy="Use Helm 4 for this rollout (kubernetes.helm).",
            )
        self.autoscaling.set_pods(deployment, pods)
        return True

    def _upgrade(
        self,
        deployment: Deployment,
        chart: Path,
        values: Sequence[Path],
        objects: Sequence[Json],
        *,
        since: int,
        description: str,
        more: str,
        served: HelmRevision | None,
        timeout: timedelta,
        limit: timedelta,
        stable: tuple[int, int] | None,
        force: bool,
    ) -> None:
        """One revision, of these objects; where its pods do not come up within `limit`, the release
        goes back to `served`.

        `since` is the newest revision before the first move, `description` that of all moves and
        `more` that of this one. `stable` are the pods of that track before and afterwards, where
        Helm does not set them.
        """
        entries = self.releases.entries(deployment)
        refuse_foreign(deployment, entries, since=since, description=description)

        def change(limit: timedelta) -> None:
            self.helm.upgrade(
                deployment.release,
                chart,
                namespace=deployment.namespace,
                values=values,
                description=description + more,
                timeout=limit,
                force=force,
            )
            if stable is not None:
                self.autoscaling.follow(deployment, *stable)

        try:
            self._wait.made(deployment, objects, limit=limit, change=change)
        except (DeployError, UnreachableError, UsageError) as error:
            # Whatever the error is called, the history says what was begun.
            now = self._entries_now(deployment, entries)
            if now[-1:] == entries[-1:]:
                # Helm refused before it changed anything, perhaps because another client is
                # at work: then nothing here is ours to undo.
                raise
            refuse_foreign(deployment, now, since=since, description=description)
            raise self._undone(deployment, objects, served, error, timeout) from error

    def _entries_now(
        self, deployment: Deployment, known: Sequence[HelmRevision]
    ) -> Sequence[HelmRevision]:
        """The history; what was `known` of it where it cannot be read."""
        try:
            return self.releases.entries(deployment)
        except UnreachableError:
            return known

    def _undone(
        self,
        deployment: Deployment,
        objects: Sequence[Json],
        served: HelmRevision | None,
        error: RolloutError,
        timeout: timedelta,
    ) -> NotReadyError:
        """`error` with what is known of the pods while they are there, once the release is back."""
        parts = [f"{error}: {self._wait.how_far(deployment, objects)}"]
        symptoms = self._known(deployment)
        if served is not None:
            description = f"{NOT_READY}, back to revision {served.revision}"
            taken = self.foreign.taken_by(deployment, served.revision)
            try:
                self._go_back(deployment, served.revision, description, timeout)
                parts.append(f"{deployment.release} is back at revision {served.revision}{taken}.")
            except RolloutError as failure:
                parts.append(f"Going back to revision {served.revision} failed as well: {failure}")
        return NotReadyError(". ".join(parts), symptoms=symptoms, remedy=error.remedy or _NOT_READY)

    def _go_back(
        self, deployment: Deployment, revision: int, description: str, timeout: timedelta
    ) -> None:
        where = deployment.namespace
        objects = self.helm.manifest(deployment.release, revision, namespace=where)
        before = self._newest(deployment, self.releases.entries(deployment))
        pods = 0
        with suppress(RolloutError):  # the rollback does not depend on it
            self.autoscaling.resume(deployment)
            pods = self.autoscaling.keep(deployment, objects)

        def change(limit: timedelta) -> None:
            self.helm.rollback(
                deployment.release,
                revision,
                namespace=where,
                description=description,
                timeout=limit,
            )
            self.autoscaling.restore(deployment, pods)

        time_of = change_time(counted(objects, pods), counted(before, pods))
        try:
            self._wait.made(deployment, objects, limit=time_of.limit(timeout), change=change)
        except DeployError as error:
            raise DeployError(
                f"{error}: {self._wait.how_far(deployment, objects)}", remedy=error.remedy
            ) from error

    def _known(self, deployment: Deployment) -> Sequence[Symptoms]:
        """Return the pods' symptoms; none where they cannot be read, as the error is reported."""
        try:
            return self.symptoms(deployment)
        except RolloutError:
            return ()
