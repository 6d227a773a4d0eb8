"""One replica: its process is started, probed, restarted, drained and ended here."""

import asyncio
import errno
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tenacity import AsyncRetrying, before_sleep_log, retry_if_exception_type, wait_fixed

from vllm_rollout.model.errors import DeployError, UsageError
from vllm_rollout.platform.local import processes
from vllm_rollout.platform.local.gpus import NO_FREE_GPU
from vllm_rollout.platform.local.processes import Identity, has_room
from vllm_rollout.platform.local.router_state import RouterState
from vllm_rollout.platform.local.state import GIVEN_UP, LEAVING, ReleaseRow, ReplicaRow
from vllm_rollout.platform.local.values import LocalValues, Seat
from vllm_rollout.ports import free_port

_CRASH_LOOP = "CrashLoopBackOff"

_TICK_SECONDS = 0.1
_PROBE_SECONDS = 1.0
_PROBES_TO_UNREADY = 3
_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 30.0
_FORGIVEN_AFTER_SECONDS = 600.0
_GRACE_SECONDS = 10.0
_AGAIN_SECONDS = 1.0

_SHORT_OF = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
)
"""Errors of a start that are the machine's, and pass."""

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Surroundings:
    """Settings and state shared by all replicas of a release. `release` follows its row."""

    release: ReleaseRow
    state: RouterState
    logs: Path
    environment: Mapping[str, str]
    healthy: Callable[[str], Awaitable[bool | None]]
    """Whether `/health` under this URL answers 200 in time; None if it could not be asked."""


@dataclass(frozen=True, slots=True)
class _Ending:
    """Why a process has to be replaced; `final` when another try cannot help.

    One that is not a `crash` is the machine's: it does not bring the replica closer to its end.
    """

    reason: str
    message: str
    final: bool = False
    crash: bool = True


class ReplicaKeeper:
    """Keeps one replica alive until it is stopped.

    Like a pod's kubelet: ready while `/health` answers 200 (three misses in a row end that);
    restarted with growing pauses when its process ends or was not healthy for the startup
    timeout; given up (phase Failed) after `max_restarts` restarts without ten good minutes. While
    the machine is short of something (a full disk), it is tried again for as long as that lasts.
    Cancelling `run` leaves the process alone, for the next router to adopt.
    """

    alone = False

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
        self._seat: Seat | None = None
        self._changed = changed
        self._found = self._noted = found
        self._crashes = self._endings = 0
        self._leave = asyncio.Event()
        if row.phase == LEAVING:
            self._leave.set()

    @property
    def ready(self) -> bool:
        """True if it may be given requests."""
        return self.row.ready and not self.leaving

    @property
    def waits_for_gpus(self) -> bool:
        """True if it is not started, as too few GPUs are free."""
        return self.row.reason == NO_FREE_GPU

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
        """The replica's whole life; returns when no process of it is left."""
        while True:
            try:
                await self._run()
            except Exception:  # noqa: BLE001 - of this replica alone: the others go on
                _log.exception("%s: its keeper begins again", self.row.name)
                self._found = True
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                return

    async def _run(self) -> None:
        while not self.leaving:
            ending = await self._live()
            if ending is None:
                break
            await self._end()
            if self._give_up(ending):
                await self._around.state.give_back(self.row.id)
                await self._leave.wait()
            else:
                await self._back_off(ending)
        await self._drain()
        await self._end()
        self._around.state.delete(self.row.id)

    async def _live(self) -> _Ending | None:
        """One process, from its start until it has to be replaced (or, None, has to leave)."""
        try:
            process = await self._adopt() or await self._start()
        except OSError as error:
            return _Ending("StartError", str(error), crash=error.errno not in _SHORT_OF)
        except DeployError as error:
            return _Ending("StartError", str(error), crash=False)
        except UsageError as error:
            return _Ending("StartError", str(error), final=True)
        clock = asyncio.get_running_loop().time
        started = healthy_at = clock()
        misses = 0
        next_probe = started
        while process is not None and not self.leaving:
            ended = processes.how_ended(process)
            if ended is not None:
                return self._ended(ended)
            if clock() >= next_probe:
                healthy = await self._around.healthy(self.url)
                if healthy:
                    misses, healthy_at = 0, clock()
                    self._be_ready()
                    if healthy_at - started > _FORGIVEN_AFTER_SECONDS:
                        self._crashes = self._endings = 0
                elif healthy is not None:
                    misses += 1
                    if misses >= _PROBES_TO_UNREADY:
                        self._be_unready()
                    if clock() - healthy_at > self._around.release.startup_timeout_seconds:
                        return _Ending("Unhealthy", "/health did not answer 200 for too long")
                next_probe = clock() + (_PROBE_SECONDS if self.row.ready else _TICK_SECONDS)
            await self._pause(_TICK_SECONDS)
        return None

    def _ended(self, how: str) -> _Ending:
        if has_room(self._around.logs):
            return _Ending("Error", how)
        return _Ending("DiskFull", f"{how}; the disk of {self._around.logs} is full", crash=False)

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

    async def _start(self) -> Identity | None:
        port = free_port(self._around.state.ports)
        self._update(phase="Pending", ready=False, port=port, process=None)
        # Written before its first process exists: if this router is killed between the two, the
        # next one knows which id to look for.
        while not self._noted:
            self._noted = await self._around.state.flush()
            if not self._noted:
                await self._pause(_AGAIN_SECONDS)
            if self.leaving:
                return None
        seat = self._seat = self._seat or await self._find_seat()
        if seat is None:
            return None
        env = self._values.environment(self._around.environment)
        model = self._around.release.model
        process = processes.spawn(
            self._values.argv(port=port, model=model, seat=seat),
            env={
                **env,
                **self._values.variables(port=port, model=model, seat=seat),
                **processes.MARKS_STAY_READABLE,
                processes.REPLICA_VARIABLE: self.row.id,
            },
            log=self._around.logs / f"{self.row.name}.log",
        )
        self._update(phase="Running", process=process)
        return process

    async def _find_seat(self) -> Seat | None:
        """Wait for the replica's GPUs; None if it has to leave before there are any."""
        while not self.leaving:
            seat = await self._around.state.take_seat(self.row.id, lambda: self._values.gpus_each)
            if seat is not None:
                if self.waits_for_gpus:
                    self._update(reason="", message="")
                return seat
            if not self.waits_for_gpus:
                message = "it waits for GPUs of the pool: too few are free"
                self._update(reason=NO_FREE_GPU, message=message)
            await self._pause(_TICK_SECONDS)
        return None

    def _be_ready(self) -> None:
        if not self.row.ready:
            self.served = True
            self._update(ready=True, reason="", message="")

    def _be_unready(self) -> None:
        if self.row.ready:
            self._update(ready=False, reason="Unhealthy", message="/health did not answer 200")

    def _give_up(self, ending: _Ending) -> bool:
        """Note why the process ended; True when it is not to be started again."""
        self._endings += 1
        self._crashes += ending.crash
        crashed_out = ending.crash and self._crashes > self._around.release.max_restarts
        over = ending.final or crashed_out
        looping = self._crashes > 1 and ending.crash and not ending.final
        had_process = ending.crash or self.row.process is not None
        self._update(
            ready=False,
            phase=GIVEN_UP if over else self.row.phase,
            restarts=self.row.restarts + (had_process and not over),
            reason=_CRASH_LOOP if looping else ending.reason,
            message=ending.message
            if over
            else f"{ending.message}; started again within {self._pause_seconds:g} s",
        )
        _log.warning("%s: %s: %s", self.row.name, ending.reason, ending.message)
        return over

    @property
    def _pause_seconds(self) -> float:
        """How long the next start waits: twice as long after each ending, up to a limit."""
        return min(_BACKOFF_SECONDS * 2.0 ** min(self._endings - 1, 10), _LONGEST_BACKOFF_SECONDS)

    async def _back_off(self, ending: _Ending) -> None:
        """Wait before the next start; where the machine was short of room, until there is some."""
        clock = asyncio.get_running_loop().time
        until = clock() + self._pause_seconds
        while not self.leaving and (left := until - clock()) > 0:
            await self._pause(left if ending.crash else min(left, _AGAIN_SECONDS))
            if not ending.crash and has_room(self._around.logs):
                return

    async def _drain(self) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        while self.open_requests:
            if clock() - began >= self._around.release.drain_seconds:
                _log.warning(
                    "%s: %d open requests are cut after %g s (local.drain)",
                    self.row.name,
                    self.open_requests,
                    self._around.release.drain_seconds,
                )
                return
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
        self._around.state.put(self.row)
        self._changed()
