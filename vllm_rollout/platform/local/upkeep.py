"""Upkeep of one machine's releases: started again after a reboot or a crash, and copied."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import DeployError, UsageError
from vllm_rollout.next_command import next_command
from vllm_rollout.platform.local.changes import Changes
from vllm_rollout.platform.local.router_control import Routers
from vllm_rollout.platform.local.state import RevisionRow, State, name_of
from vllm_rollout.platform.local.values import LocalValues

_BESIDE = ("-wal", "-shm")
"""SQLite has what is not yet in the state file in files beside it, which end so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """Starts what should serve and does not; `fill_pool` brings the GPUs to give up to date."""

    state: State
    routers: Routers
    changes: Changes
    startup_timeout: timedelta
    fill_pool: Callable[[Sequence[LocalValues]], None]

    def releases(self) -> Mapping[str, str]:
        """Return each release that shall serve, by its name in the state file, and its model."""
        rows = [self.state.release(name) for name in self.state.releases()]
        return {row.name: row.model for row in rows if row and row.desired}

    def start(self, deployment: Deployment) -> bool:
        """Start what should serve, if its router does not run; return whether it did not.

        Nothing is waited for: `wait` does that. A change whose client is gone is withdrawn.

        Raises:
            UsageError: a secret is not in the environment; or as `find_gpus`.
            DeployError: the router does not come up.
            ConflictError: as `recover`.
        """
        name = name_of(deployment)
        self.changes.withdraw_pending(name)
        serving = self.changes.serving(name)
        if serving is None or self.routers.running(name) is not None:
            return False
        self._start(name, serving)
        return True

    def recover(self, deployment: Deployment) -> str:
        """Withdraw a revision whose client was killed and restart a router that was.

        Returns what was found in words, "" when nothing was. It waits for the replicas up to the
        startup timeout and says so when they are not ready by then.

        Raises:
            ConflictError: the pending revision's client still runs, and no guard is set.
            UnreachableError: the state file cannot be used.
        """
        name = name_of(deployment)
        found: list[str] = []
        if (pending := self.changes.withdraw_pending(name)) is not None:
            found.append(
                f"revision {pending.number} was pending and its client (process "
                f"{pending.client.pid}) gone: it has failed"
            )
        serving = self.changes.serving(name)
        router_gone = self.routers.running(name) is None
        if serving is None:
            if router_gone and self.state.replicas(name):
                self.routers.stop(name, timeout=timedelta(0), forget=False)
                found.append("replicas without a router were ended")
            return "; ".join(found)
        if router_gone:
            found.append("the router was not running: started again")
        if found:
            try:
                self.changes.wait(name, serving, timeout=self.startup_timeout)
                found.append(f"revision {serving.number} serves")
            except DeployError as error:
                found.append(f"revision {serving.number} does not serve yet: {error}")
        return "; ".join(found)

    def wait(self, deployment: Deployment) -> str:
        """Wait until what should serve does, up to the startup timeout; return it in words.

        Raises:
            DeployError: it does not, with the reason and the last log lines.
        """
        name = name_of(deployment)
        serving = self.changes.serving(name)
        if serving is None:
            return "nothing of it should serve"
        self.changes.wait(name, serving, timeout=self.startup_timeout, replaces=False)
        return f"revision {serving.number}, build {serving.build.short}, serves"

    def restart(self, deployment: Deployment) -> bool:
        """Start again the replicas that are not ready; return whether there were any.

        Those that are ready go on. `wait` waits for the others.

        Raises:
            UsageError: nothing of the release should serve; or as `start`.
            DeployError: as `start`.
        """
        name = name_of(deployment)
        serving = self.changes.serving(name)
        if serving is None:
            raise UsageError(
                f"{deployment} has no revision that should serve",
                remedy="See what is deployed where: "
                + next_command("vllm-rollout", "status", deployment.model),
            )
        members = self.state.members(name)
        wanted = sum(part.replicas for part in serving.composition.parts)
        ready = len(members) >= wanted and all(each.public().ready for each in members)
        if ready and self.routers.running(name) is not None:
            return False
        self._start(name, serving)
        return True

    def _start(self, name: str, serving: RevisionRow) -> None:
        rows = [self.state.revision(name, part.revision) for part in serving.composition.parts]
        parts = [LocalValues.model_validate(row.values) for row in rows if row]
        for values in parts:
            values.environment(os.environ)
        self.fill_pool(parts)
        self.changes.start(name, serving)

    def back_up(self, file: Path) -> None:
        """Copy the state, documents and leases to `file`, whoever writes meanwhile.

        Raises:
            UsageError: that is the state file itself.
            UnreachableError: it cannot be copied there.
        """
        own = self.state.database.path
        if file.resolve() in (own, *(own.with_name(f"{own.name}{end}") for end in _BESIDE)):
            raise UsageError(
                f"{file} is the state file itself", remedy="Name another, on another disk."
            )
        self.state.database.copy_to(file)
