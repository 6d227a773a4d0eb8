"""A change of a release: begun as a pending revision, waited for, then deployed or withdrawn."""

import os
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import datetime, timedelta

from vllm_rollout.model.deployment import Build, RevisionStatus
from vllm_rollout.model.errors import DeployError
from vllm_rollout.model.units import counted
from vllm_rollout.platform.base import (
    ConflictError,
    ForeignWeightsError,
    Weights,
    WeightsChangedError,
)
from vllm_rollout.platform.local import processes
from vllm_rollout.platform.local.composition import Composition
from vllm_rollout.platform.local.gpus import Gpus
from vllm_rollout.platform.local.router_control import ReleaseLogs, Routers
from vllm_rollout.platform.local.state import (
    AGAIN,
    GIVEN_UP,
    ReplicaRow,
    RevisionRow,
    State,
)
from vllm_rollout.platform.local.values import LocalValues
from vllm_rollout.platform.writer import Guard

_POLL_SECONDS = 0.05
_ROUTER_STARTS = 3
_LOG_LINES = 10
_KEPT_REVISIONS = 100
_RETURN_TIMEOUT = timedelta(seconds=15)

Compose = Callable[[int, Composition | None], Composition]
"""From a new revision's number and the composition that serves to the new composition."""


class Changes:
    """Makes revisions. Whatever interrupts one, the revision that served before is desired again;
    only a client killed outright leaves it pending, for `withdraw_pending`."""

    guard: Guard | None = None

    def __init__(self, state: State, routers: Routers, logs: ReleaseLogs) -> None:
        self._state = state
        self._routers = routers
        self._logs = logs
        self._gpus = Gpus(state)

    def ensure_guarded(self) -> None:
        """Raise what the guard raises when releases may not be changed any more."""
        if self.guard is not None:
            self.guard.ensure()

    def begin(
        self,
        name: str,
        *,
        build: Build,
        values: LocalValues,
        description: str,
        created: datetime,
        composed: Compose,
        install: Callable[[], None],
    ) -> RevisionRow:
        """Write a pending revision down and ask the router for its composition.

        `install` sees to it that there is a release.

        Raises:
            ConflictError: another revision is pending.
            DeployError: there is no room for it on the GPUs.
        """
        self.ensure_guarded()
        serving = self.serving(name)
        secrets = {*values.secrets, *(self._secrets(name, serving.composition) if serving else ())}
        if self._routers.running(name) is not None:
            # Before it is asked for replicas: it starts them as it is itself.
            self._routers.ensure(name, secrets=secrets)
        with self._state.database.transaction():
            self.ensure_guarded()
            install()
            history = self._state.revisions(name)
            for earlier in history:
                if earlier.status is RevisionStatus.PENDING:
                    raise ConflictError(
                        f"{name}: revision {earlier.number} is still pending, "
                        f"made by process {earlier.client.pid}",
                        remedy="Wait for that command; if it was killed, recover the release.",
                    )
            number = history[-1].number + 1 if history else 1
            serving = _deployed(history)
            composition = composed(number, None if serving is None else serving.composition)
            self._gpus.ensure_room(name, composition, {number: values})
            row = RevisionRow(
                number=number,
                status=RevisionStatus.PENDING,
                created=created,
                description=description,
                build=build,
                values=values.to_json(),
                composition=composition,
                client=processes.current(),
            )
            self._state.add_revision(name, row)
            self._state.desire(name, number)
            self._state.forget_revisions(name, before=number - _KEPT_REVISIONS)
        return row

    def finish(self, name: str, row: RevisionRow, *, timeout: timedelta) -> None:
        """Wait until the revision is in place and call it deployed.

        Raises:
            DeployError: it is not within `timeout`; it has failed, and the one before is back.
        """
        try:
            secrets = self._secrets(name, row.composition)
            self.wait(name, row, timeout=timeout, secrets=secrets)
            self._deployed(name, row.number)
        except DeployError as error:
            back = self._withdraw(name, row.number)
            raise DeployError(
                f"{error}\n{self._return(name, back)}", remedy=error.remedy
            ) from error
        except BaseException:
            self._withdraw(name, row.number)
            raise

    def withdraw_pending(self, name: str) -> RevisionRow | None:
        """Call a pending revision failed and desire the one before; return it if there was one.

        Raises:
            ConflictError: another process, still running, is making it, and there is no guard that
                says whether it still may.
        """
        with self._state.database.transaction():
            self.ensure_guarded()
            for row in self._state.revisions(name):
                if row.status is RevisionStatus.PENDING:
                    other = row.client.pid != os.getpid() and processes.is_running(row.client)
                    if other and self.guard is None:
                        raise ConflictError(
                            f"{name}: process {row.client.pid} is making revision {row.number}",
                            remedy="Let it finish, or end it first.",
                        )
                    self._withdraw(name, row.number)
                    return row
        return None

    def serving(self, name: str) -> RevisionRow | None:
        """The newest revision that is deployed."""
        return _deployed(self._state.revisions(name))

    def start(self, name: str, row: RevisionRow) -> None:
        """See to it that a router runs, and that it starts again what was given up.

        Raises:
            DeployError: it does not come up.
        """
        with self._state.database.transaction():
            self.ensure_guarded()
            for each in self._state.replicas(name):
                if each.phase == GIVEN_UP:
                    self._state.put_replica(replace(each, phase=AGAIN))
            self._state.desire(name, row.number)
        self._routers.ensure(name, secrets=self._secrets(name, row.composition))

    def wait(
        self,
        name: str,
        row: RevisionRow,
        *,
        timeout: timedelta,
        secrets: Collection[str] = (),
        replaces: bool = True,
    ) -> None:
        """Wait until the router has the revision's composition in place, starting it if need be.

        With `replaces`, replicas that are given up by now are about to be replaced.

        Raises:
            DeployError: not within `timeout`, a replica was given up, or the router keeps ending.
        """
        deadline = time.monotonic() + timeout.total_seconds()
        starts_left = _ROUTER_STARTS
        given_up = {each.id for each in self._state.replicas(name) if each.phase == GIVEN_UP}
        replaced = given_up if replaces else set()
        while True:
            release = self._state.release(name)
            if release is None or release.desired != row.number:
                raise _withdrawn(name, row.number)
            if release.settled == row.number and self._routers.running(name) is not None:
                return
            if self._cannot_come(name, row, replaced):
                raise self._not_ready(name, row, "was given up")
            if time.monotonic() > deadline:
                raise self._not_ready(name, row, f"is not ready after {timeout}")
            if self._routers.ensure(name, secrets=secrets):
                starts_left -= 1
                if not starts_left:
                    raise self._not_ready(name, row, "has a router that keeps ending")
            time.sleep(_POLL_SECONDS)

    def divide(
        self, name: str, weights: Weights, *, expect: Weights | None, timeout: timedelta
    ) -> None:
        """Ask the router to divide the release's traffic, and wait until it does.

        Raises:
            ForeignWeightsError: it was not divided as `expect`.
            WeightsChangedError: the router does not follow.
        """
        with self._state.database.transaction():
            self.ensure_guarded()
            now = self._state.weights(name)
            if expect is not None and now != expect:
                raise ForeignWeightsError(f"{name}: {now.foreign(expect)}")
            self._state.put_weights(name, weights)
        deadline = time.monotonic() + timeout.total_seconds()
        while not self._state.weights_in_force(name):
            if time.monotonic() > deadline:
                raise WeightsChangedError(
                    f"{name}: the router does not divide traffic {weights} after {timeout}"
                )
            self._routers.ensure(name)
            time.sleep(_POLL_SECONDS)

    def _deployed(self, name: str, number: int) -> None:
        with self._state.database.transaction():
            if not self._pending(name, number):
                raise _withdrawn(name, number)
            for row in self._state.revisions(name):
                if row.status is RevisionStatus.DEPLOYED:
                    self._state.set_status(name, row.number, RevisionStatus.SUPERSEDED)
            self._state.set_status(name, number, RevisionStatus.DEPLOYED)

    def _withdraw(self, name: str, number: int) -> RevisionRow | None:
        """Call the revision failed; return the one that is desired again.

        One that is not pending any more was withdrawn by another, who has gone on since.
        """
        with self._state.database.transaction():
            back = self.serving(name)
            if not self._pending(name, number):
                return back
            self._state.set_status(name, number, RevisionStatus.FAILED)
            self._state.desire(name, None if back is None else back.number)
        return back

    def _pending(self, name: str, number: int) -> bool:
        row = self._state.revision(name, number)
        return row is not None and row.status is RevisionStatus.PENDING

    def _return(self, name: str, back: RevisionRow | None) -> str:
        if back is None:
            return "Nothing served before, so nothing serves now."
        try:
            self.wait(name, back, timeout=_RETURN_TIMEOUT)
        except DeployError as error:
            return f"Revision {back.number} is desired again and not in place: {error}"
        return f"Revision {back.number} serves as before."

    def _members(self, name: str, row: RevisionRow) -> list[ReplicaRow]:
        builds = {part.build for part in row.composition.parts}
        return [each for each in self._state.members(name) if each.build in builds]

    def _cannot_come(self, name: str, row: RevisionRow, replaced: set[str]) -> bool:
        """Return True if a part has lost, for good, replicas that it needs."""
        members = self._members(name, row)
        for part in row.composition.parts:
            mine = [each for each in members if each.build == part.build]
            lost = [each for each in mine if each.phase == GIVEN_UP and each.id not in replaced]
            if lost and len(mine) - len(lost) < part.replicas:
                return True
        return False

    def _not_ready(self, name: str, row: RevisionRow, what: str) -> DeployError:
        lines = [f"{name}: revision {row.number} {what}"]
        for each in self._members(name, row):
            if not each.ready:
                why = " ".join(filter(None, [each.phase, each.reason, each.message]))
                lines += [f"{each.name}: {why}, {counted(each.restarts, 'restart')}"]
                lines += [self._logs.read(each, lines=_LOG_LINES)]
        return DeployError(
            "\n".join(lines), remedy="The log lines above are the replica's last; they say why."
        )

    def _secrets(self, name: str, composition: Composition) -> set[str]:
        rows = [self._state.revision(name, part.revision) for part in composition.parts]
        return {secret for row in rows if row for secret in row.values.get("secrets", [])}


def _withdrawn(name: str, number: int) -> DeployError:
    return DeployError(f"{name}: revision {number} was withdrawn by another command")


def _deployed(history: list[RevisionRow]) -> RevisionRow | None:
    found = [row for row in history if row.status is RevisionStatus.DEPLOYED]
    return found[-1] if found else None
