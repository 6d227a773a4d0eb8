"""The local platform: commands write the desired state, and the routers reconcile it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from vllm_rollout.model.deployment import (
    Build,
    Canary,
    Deployment,
    Replica,
    Revision,
    Target,
    canonical_digest,
)
from vllm_rollout.model.errors import RolloutError, UnreachableError, UsageError
from vllm_rollout.model.live_figures import Usage
from vllm_rollout.model.preflight_facts import GpuRoom, Preflight
from vllm_rollout.model.symptoms import Symptoms
from vllm_rollout.next_command import next_command, release_command
from vllm_rollout.platform.base import (
    ROUTER_GONE,
    LiveObject,
    LiveObjects,
    PathErrors,
    Route,
    Weights,
)
from vllm_rollout.platform.local.changes import Changes, Compose
from vllm_rollout.platform.local.composition import Composition, compose
from vllm_rollout.platform.local.gpus import Gpus, find_gpus
from vllm_rollout.platform.local.proxy import OWN_PATH
from vllm_rollout.platform.local.router_control import ReleaseLogs, Routers
from vllm_rollout.platform.local.state import (
    ReplicaRow,
    RevisionRow,
    State,
    name_of,
    open_state,
)
from vllm_rollout.platform.local.store import SqliteStore, utc_now
from vllm_rollout.platform.local.upkeep import Upkeep
from vllm_rollout.platform.local.usage import SOURCE as PROCESSES
from vllm_rollout.platform.local.usage import local_usage
from vllm_rollout.platform.local.values import LocalValues, parse_values
from vllm_rollout.platform.writer import Guard
from vllm_rollout.ports import LOOPBACK

_SYMPTOM_LINES = 50


class LocalPlatform:
    """Releases as processes of this machine, kept under `state_dir` (see `ReleaseWriter`).

    Nothing is opened before the first question. `startup_timeout` is how long a replica may take
    to become healthy, or stay unhealthy, before it is restarted; after `max_restarts` it is given
    up. `drain` is how long one that leaves may answer its open requests. `gpus` are the pool that
    replicas are given GPUs from, `auto` those of nvidia-smi. `now` dates revisions and leases.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        startup_timeout: timedelta,
        max_restarts: int,
        drain: timedelta = timedelta(minutes=1),
        gpus: Literal["auto"] | tuple[str, ...] | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._state_dir = state_dir.absolute()
        self._startup_timeout = startup_timeout
        self._max_restarts = max_restarts
        self._drain = drain
        self._pool = gpus
        self._now = now

    @cached_property
    def _state(self) -> State:
        return open_state(self._state_dir)

    @cached_property
    def _routers(self) -> Routers:
        return Routers(self._state_dir, self._state)

    @cached_property
    def _logs(self) -> ReleaseLogs:
        return ReleaseLogs(self._state_dir, self._state, self._routers)

    @cached_property
    def _changes(self) -> Changes:
        return Changes(self._state, self._routers, self._logs)

    @cached_property
    def upkeep(self) -> Upkeep:
        """Upkeep of this machine's releases: started again, and copied."""
        return Upkeep(
            state=self._state,
            routers=self._routers,
            changes=self._changes,
            startup_timeout=self._startup_timeout,
            fill_pool=self._fill_pool,
        )

    @cached_property
    def store(self) -> SqliteStore:
        """Store of evidence, journal and lock: the same file as the releases."""
        return SqliteStore(self._state.database, now=self._now)

    @property
    def name(self) -> str:
        """`local`."""
        return "local"

    def guard(self, guard: Guard) -> None:
        """Ask `guard` in the transaction that begins each change: what it says holds for all of it.

        The lease is in the same file. A change whose client has lost the lease, frozen perhaps, is
        withdrawn by the lease's next holder like that of a client that is gone.
        """
        self._changes.guard = guard

    def base_url(self, deployment: Deployment) -> str:
        """The router's URL; it stays the same for as long as the release exists.

        Raises:
            UsageError: there is no such release.
        """
        release = self._state.release(name_of(deployment))
        if release is None:
            raise UsageError(
                f"there is no release {deployment.release} in {self._state_dir}",
                remedy="See what is deployed where: "
                + next_command("vllm-rollout", "status", deployment.model),
            )
        return f"http://{LOOPBACK}:{release.port}"

    def route(self, deployment: Deployment) -> Route:
        """The router's URL, which is reached directly."""
        return Route(url=self.base_url(deployment))

    def path_errors(self, deployment: Deployment) -> PathErrors:  # noqa: ARG002 - the Protocol's
        """Nothing ever: the router is part of the deployment."""
        return PathErrors()

    def own_url(self, deployment: Deployment) -> str:
        """Return the router's URL of the release's own replicas. Raises: as `base_url`."""
        return self.base_url(deployment) + OWN_PATH

    def replica_url(self, deployment: Deployment, replica: Replica) -> str:  # noqa: ARG002 - the Protocol's
        """The replica's own port."""
        return replica.address

    def weights(self, deployment: Deployment) -> Weights:
        """Return how the router divides the release's traffic; it can always be divided here."""
        return self._state.weights(name_of(deployment))

    def set_weights(
        self,
        deployment: Deployment,
        weights: Weights,
        *,
        expect: Weights | None,
        timeout: timedelta,
    ) -> None:
        """Divide the traffic, and return when the router does.

        Raises:
            ForeignWeightsError: it is divided otherwise.
            WeightsChangedError: the router does not follow.
            UnreachableError: the state file cannot be used.
        """
        self._changes.divide(name_of(deployment), weights, expect=expect, timeout=timeout)

    def history(self, deployment: Deployment) -> Sequence[Revision]:
        """All revisions, oldest first; empty when the release does not exist."""
        return [row.public() for row in self._state.revisions(name_of(deployment))]

    def expected_history(
        self,
        deployment: Deployment,  # noqa: ARG002 - one file has releases and documents
    ) -> str:
        """Return "": documents are not kept without the releases."""
        return ""

    def values(self, deployment: Deployment, revision: int) -> dict[str, Any]:
        """The values of the revision's build.

        Raises:
            UsageError: there is no such revision.
        """
        return dict(self._revision(deployment, revision).values)

    def build(self, deployment: Deployment, values: dict[str, Any]) -> Build:  # noqa: ARG002 - the Protocol's
        """The build that `values` make: their digest and the model revision they name.

        Raises:
            UsageError: the values are wrong.
        """
        return _build_of(parse_values(values))

    def running_differences(self, deployment: Deployment) -> list[str]:  # noqa: ARG002 - the Protocol's
        """Nothing: a replica's command is that of its revision, and nobody else starts any."""
        return []

    def preflight(
        self,
        deployment: Deployment,
        values: Mapping[str, Any],
        *,
        capacity: int,
        steps: Sequence[int] = (),  # noqa: ARG002 - each step of a ramp takes as much
    ) -> Preflight | None:
        """Return the room on the GPUs; there is no chart, no quota and no registry here.

        None where no GPUs are given to replicas.

        Raises:
            UsageError: the values are wrong.
        """
        if self._pool is None:
            return None
        parsed = parse_values(values)
        name = name_of(deployment)

        def room() -> GpuRoom:
            history = self._state.revisions(name)
            number = history[-1].number + 1 if history else 1
            wanted = compose(
                _build_of(parsed).digest, number, replicas=capacity, capacity=capacity, before=None
            )
            pool = find_gpus(self._pool)
            room = Gpus(self._state).room(name, wanted, {number: parsed}, pool=pool)
            # Beside a canary the release itself is brought to the build at the ramp's end.
            beside = parsed.gpus_each if isinstance(deployment, Canary) else 0
            return replace(room, needed=room.needed + beside, surge=room.surge + beside)

        # The policy asks for no other check on this platform (`Policy.preflight_of`).
        return cast("Preflight", _Room(room))

    def apply(
        self, deployment: Deployment, target: Target, *, description: str, timeout: timedelta
    ) -> Revision:
        """Bring the release to `target` in a new revision and wait until its replicas are ready.

        Replicas that run the build already go on; those that are too many leave when all others
        are ready. A target that is not ready in time is withdrawn: the revision has failed and
        the one before serves on.

        Raises:
            UsageError: the values are wrong, are not those of the build, or a secret they list is
                not in the environment.
            DeployError: not ready within `timeout`, with the reason and the last log lines.
            ConflictError: another revision is pending.
            UnreachableError: the state file cannot be used.
        """
        values = parse_values(target.values)
        made = _build_of(values)
        if made != target.build:
            raise UsageError(
                f"{deployment}: the values are not those of build {target.build.short}: "
                + "; ".join(target.build.differences(made)),
                remedy="Gate the build that these values make, and apply that.",
            )
        self._fill_pool([values])

        def composed(number: int, before: Composition | None) -> Composition:
            return compose(
                made.digest,
                number,
                replicas=target.replicas,
                capacity=target.capacity,
                before=before,
            )

        return self._change(deployment, made, values, composed, description, timeout)

    def rollback(
        self, deployment: Deployment, revision: int, *, description: str, timeout: timedelta
    ) -> Revision:
        """Make a new revision with the composition of `revision` and wait until it is ready.

        Raises: as `apply`; UsageError also when there is no such revision.
        """
        row = self._revision(deployment, revision)
        values = parse_values(row.values)
        try:
            self._fill_pool([values])
        except (UnreachableError, UsageError):
            if not Gpus(self._state).pool:  # what GPUs there were is enough to go back with
                raise
        return self._change(
            deployment, row.build, values, lambda *_: row.composition, description, timeout
        )

    def undo_command(self, deployment: Deployment, revision: int | None) -> str:  # noqa: ARG002
        """Empty: the releases are the suite's own."""
        return ""

    def live_objects(self, deployment: Deployment) -> LiveObjects:
        """The release by its newest revision: nobody changes its replicas otherwise."""
        rows = self._state.revisions(name_of(deployment))
        return {str(deployment): LiveObject(fields={"revision": rows[-1].number})} if rows else {}

    def autoscaled_by(self, deployment: Deployment) -> list[str]:  # noqa: ARG002
        """None: there are no autoscalers here."""
        return []

    def field_conflicts(
        self,
        deployment: Deployment,  # noqa: ARG002 - the protocol's signature
        revision: int | None = None,  # noqa: ARG002
    ) -> list[str]:
        """Nothing: nobody else changes a release's replicas."""
        return []

    def uninstall(self, deployment: Deployment, *, timeout: timedelta) -> None:
        """Remove the release, its history, its processes and its port. Documents stay.

        Open requests get `timeout` to finish. Removing nothing is no error.

        Raises:
            DeployError: a process does not end.
        """
        if self._state.release(name_of(deployment)) is not None:
            self._changes.ensure_guarded()
            self._routers.stop(name_of(deployment), timeout=timeout, forget=True)

    def stop_all(self, *, timeout: timedelta = timedelta(seconds=10)) -> None:
        """End every router and replica of this state directory, and of no other.

        Releases keep their history; `recover` starts one again.

        Raises:
            DeployError: a process does not end.
        """
        for name in self._state.releases():
            self._routers.stop(name, timeout=timeout, forget=False)

    def recover(
        self,
        deployment: Deployment,
        *,
        timeout: timedelta,  # noqa: ARG002 - a start here has the startup timeout
    ) -> str:
        """Withdraw a revision whose client was killed and restart a router that was.

        Returns what was found in words; `Upkeep.recover` says more.
        """
        return self.upkeep.recover(deployment)

    def replicas(self, deployment: Deployment) -> Sequence[Replica]:
        """The replicas that exist, those about to leave aside. None is ready without a router."""
        members = [
            replace(row.public(), command=self._command(deployment, row))
            for row in self._state.members(name_of(deployment))
        ]
        if members and self._routers.running(name_of(deployment)) is None:
            back = release_command("up", deployment)
            gone = f"the release's router is not running: {back} brings it back"
            return [
                replace(each, ready=False, reason=ROUTER_GONE, message=gone) for each in members
            ]
        return members

    def usage(self, deployment: Deployment) -> Usage:
        """Return what the processes of each replica use, and their GPUs. Does not raise."""
        try:
            rows = self._state.members(name_of(deployment))
            gpus = Gpus(self._state)
            seats = {row.name: gpus.seat(row.id) for row in rows}
        except RolloutError as error:
            return Usage(source=PROCESSES, unknown=str(error), gpus_unknown=str(error))
        return local_usage({row.name: row.id for row in rows}, seats)

    def logs(self, deployment: Deployment, *, tail: int = 100) -> str:
        """The last `tail` log lines of each replica, secrets redacted."""
        return "\n".join(
            self._logs.read(row, lines=tail) for row in self._state.members(name_of(deployment))
        )

    def symptoms(self, deployment: Deployment) -> Sequence[Symptoms]:
        """Return the symptoms of each replica: its state, and the last lines of its log."""
        return [
            Symptoms(
                replica=replica,
                node=LOOPBACK,
                restarts=replica.restarts,
                log=self._logs.read(row, lines=_SYMPTOM_LINES),
            )
            for replica, row in zip(
                self.replicas(deployment), self._state.members(name_of(deployment)), strict=False
            )
        ]

    def _command(self, deployment: Deployment, replica: ReplicaRow) -> tuple[str, ...]:
        """The replica's command line, but for the port."""
        made_of = self._state.revision(replica.release, replica.revision)
        if made_of is None:
            return ()
        values = LocalValues.model_validate(dict(made_of.values))
        return tuple(values.argv(port=0, model=deployment.model))

    def _revision(self, deployment: Deployment, number: int) -> RevisionRow:
        row = self._state.revision(name_of(deployment), number)
        if row is None:
            known = ", ".join(str(each.number) for each in self.history(deployment))
            raise UsageError(
                f"{deployment} has no revision {number}",
                remedy=f"Revisions: {known}." if known else "The release does not exist.",
            )
        return row

    def _change(
        self,
        deployment: Deployment,
        build: Build,
        values: LocalValues,
        composed: Compose,
        description: str,
        timeout: timedelta,
    ) -> Revision:
        # Its secrets must be here: replicas get theirs from the router, and it from this process.
        values.environment(os.environ)
        name = name_of(deployment)
        row = self._changes.begin(
            name,
            build=build,
            values=values,
            description=description,
            created=self._now(),
            composed=composed,
            install=lambda: self._state.put_release(
                name,
                deployment.model,
                startup_timeout_seconds=self._startup_timeout.total_seconds(),
                max_restarts=self._max_restarts,
                drain_seconds=self._drain.total_seconds(),
            ),
        )
        self._changes.finish(name, row, timeout=timeout)
        return self._revision(deployment, row.number).public()

    def _fill_pool(self, parts: Sequence[LocalValues]) -> None:
        """Bring the pool, from which replicas of these values are given GPUs, up to date.

        Raises:
            UsageError: they ask for one by name, and there is no pool; or as `find_gpus`.
        """
        if self._pool is None and any(values.names_gpus for values in parts):
            raise UsageError(
                "values of the release: {gpu} is in them, and the policy has no GPUs to give",
                remedy="Set `local: {gpus: auto}`, or list them: `local: {gpus: [0, 1]}`.",
            )
        Gpus(self._state).fill(find_gpus(self._pool))


@dataclass(frozen=True, slots=True)
class _Room:
    """The one fact about a build that is known here before it is deployed."""

    room: Callable[[], GpuRoom]


def _build_of(values: LocalValues) -> Build:
    return Build(
        values_digest=canonical_digest(values.to_json()), model_revision=values.model_revision
    )
