"""One replica: its process is started, probed, restarted, drained and ended here."""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tenacity import AsyncRetrying, before_sleep_log, retry_if_exception_type, wait_fixed

from vllm_rollout.model.errors import DeployError, UnreachableError, UsageError
from vllm_rollout.platform.local import processes
from vllm_rollout.platform.local.processes import Identity
from vllm_rollout.platform.local.state import LEAVING, ReleaseRow, ReplicaRow, State
from vllm_rollout.platform.local.values import LocalValues
from vllm_rollout.ports import free_port

GIVEN_UP = "Failed"
"""Phase of a replica that is not started again."""
_CRASH_LOOP = "CrashLoopBackOff"

_TICK_SECONDS = 0.1
_PROBE_SECONDS = 1.0
_PROBES_TO_UNREADY = 3
_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 30.0
_FORGIVEN_AFTER_SECONDS = 600.0
_DRAIN_SECONDS = 30.0
_GRACE_SECONDS = 10.0

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Surroundings:
    """Settings and state shared by all replicas of a release. `release` follows its row."""

    release: ReleaseRow
    state: State
    logs: Path
    environment: Mapping[str, str]
    healthy: Callable[[str], Awaitable[bool]]
    """Whether `/health` under this URL answers 200 in time."""


@dataclass(frozen=True, slots=True)
class _Ending:
    """Why a process has to be replaced; `final` when another try cannot help."""

    reason: str
    message: str
    final: bool = False


class ReplicaKeeper:
    """Keeps one replica alive until it is stopped.

    Like a pod's kubelet: ready while `/health` answers 200 (three misses in a row end that);
    restarted with growing pauses when its process ends or was not healthy for the startup
    timeout; given up (phase Failed) after `max_restarts` restarts without ten good minutes.
    Cancelling `run` leaves the process alone, for the next router to adopt.
    """

    def __init__(
        self,
        row: ReplicaRow,
        values: LocalValues,
        around: Surroundings,
        *,
        changed: Callable[[], None],
        found: bool = False,
    ) -> None:
        """`changed` is called when the replica becomes ready, unready or starts to leave.

        `found`: the row is from an earlier router, so processes of it may be running.

        `open_requests` is counted by whoever sends them; `served` says whether it was ever ready.
        """
        # A row may say ready of a process that ended while no router was there to see it.
        self.row = replace(row, ready=row.ready and processes.is_running(row.process))
        self.open_requests = 0
        self.served = row.ready
        self._values = values
        self._around = around
        self._changed = changed
        self._found = found
        self._crashes = 0
        self._leave = asyncio.Event()
        if row.phase == LEAVING:
            self._leave.set()

    @property
    def ready(self) -> bool:
        """True if it may be given requests."""
        return self.row.ready and not self.leaving

    @property
    def leaving(self) -> bool:
        """True if it was asked to stop."""
        return self._leave.is_set()

    @property
    def url(self) -> str:
        """Address of the replica, without a trailing slash."""
        return self.row.address

    def leave(self) -> None:
        """Give it no new requests, and end it when the open ones are answered."""
        if not self.leaving:
            self._leave.set()
            self._update(phase=LEAVING)

    async def run(self) -> None:
        """The replica's whole life; returns when no process and no row of it is left."""
        while not self.leaving:
            ending = await self._live()
            if ending is None:
                break
            await self._end()
            if self._give_up(ending):
                await self._leave.wait()
            else:
                await self._pause(
                    min(_BACKOFF_SECONDS * 2 ** (self._crashes - 1), _LONGEST_BACKOFF_SECONDS)
                )
        await self._drain()
        await self._end()
        try:
            self._around.state.delete_replica(self.row.id)
        except UnreachableError as error:
            _log.warning("%s keeps its row: %s", self.row.name, error)

    async def _live(self) -> _Ending | None:
        """One process, from its start until it has to be replaced (or, None, has to leave)."""
        try:
            process = await self._adopt() or self._start()
        except (OSError, UnreachableError, DeployError) as error:
            return _Ending("StartError", str(error))
        except UsageError as error:
            return _Ending("StartError", str(error), final=True)
        clock = asyncio.get_running_loop().time
        started = healthy_at = clock()
        misses = 0
        next_probe = started
        while not self.leaving:
            ended = processes.how_ended(process)
            if ended is not None:
                return _Ending("Error", ended)
            if clock() >= next_probe:
                if await self._around.healthy(self.url):
                    misses, healthy_at = 0, clock()
                    self._be_ready()
                    if healthy_at - started > _FORGIVEN_AFTER_SECONDS:
                        self._crashes = 0
                else:
                    misses += 1
                    if misses >= _PROBES_TO_UNREADY:
                        self._be_unready()
                    if clock() - healthy_at > self._around.release.startup_timeout_seconds:
                        return _Ending("Unhealthy", "/health did not answer 200 for too long")
                next_probe = clock() + (_PROBE_SECONDS if self.row.ready else _TICK_SECONDS)
            await self._pause(_TICK_SECONDS)
        return None

    async def _adopt(self) -> Identity | None:
        """The process an earlier router started, if it still runs; its strays are ended if not."""
        found, self._found = self._found, False
        if not found:
            return None
        process = self.row.process
        if process is not None:
            running = await asyncio.to_thread(processes.carrying, self.row.id)
            if process.pid in {each.pid for each in running} and processes.is_running(process):
                return process
            self._update(restarts=self.row.restarts + 1)
        await self._end()
        return None

    def _start(self) -> Identity:
        # Written before the process exists: if this router is killed between the two, the next
        # one knows which id to look for.
        port = free_port(self._around.state.ports())
        reserved = replace(self.row, phase="Pending", ready=False, port=port, process=None)
        self._around.state.put_replica(reserved)
        self.row = reserved
        env = self._values.environment(self._around.environment)
        process = processes.spawn(
            self._values.argv(port=port, model=self._around.release.model),
            env={
                **env,
                **processes.MARKS_STAY_READABLE,
                processes.REPLICA_VARIABLE: self.row.id,
            },
            log=self._around.logs / f"{self.row.name}.log",
        )
        self._update(phase="Running", process=process)
        return process

    def _be_ready(self) -> None:
        if not self.row.ready:
            self.served = True
            self._update(ready=True, reason="", message="")

    def _be_unready(self) -> None:
        if self.row.ready:
            self._update(ready=False, reason="Unhealthy", message="/health did not answer 200")

    def _give_up(self, ending: _Ending) -> bool:
        """Note why the process ended; True when it is not to be started again."""
        self._crashes += 1
        over = ending.final or self._crashes > self._around.release.max_restarts
        looping = self._crashes > 1 and not ending.final
        self._update(
            ready=False,
            phase=GIVEN_UP if over else self.row.phase,
            restarts=self.row.restarts + (0 if over else 1),
            reason=_CRASH_LOOP if looping else ending.reason,
            message=ending.message,
        )
        _log.warning("%s: %s: %s", self.row.name, ending.reason, ending.message)
        return over

    async def _drain(self) -> None:
        deadline = asyncio.get_running_loop().time() + _DRAIN_SECONDS
        while self.open_requests and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_TICK_SECONDS / 2)

    async def _end(self) -> None:
        again = AsyncRetrying(
            retry=retry_if_exception_type(DeployError),
            wait=wait_fixed(_GRACE_SECONDS),
            before_sleep=before_sleep_log(_log, logging.ERROR),
        )
        end = functools.partial(processes.end_replica, self.row.id, grace_seconds=_GRACE_SECONDS)
        await again(asyncio.to_thread, end)

    async def _pause(self, seconds: float) -> None:
        """Sleep, but wake up to leave."""
        try:
            async with asyncio.timeout(seconds):
                await self._leave.wait()
        except TimeoutError:
            return

    def _update(self, **changes: Any) -> None:
        if self.leaving:
            changes["phase"] = LEAVING
        self.row = replace(self.row, **changes)
        try:
            self._around.state.put_replica(self.row)
        except UnreachableError as error:
            # Disk full or locked: serving goes on; the next change writes the whole row.
            _log.warning("%s: %s", self.row.name, error)
        self._changed()
