"""Sends one worker's share of a load: every arrival at its own time, whatever the others do."""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import psutil
from gevent.pool import Group

from loadtests.completions import Completions
from vllm_rollout.observe.arrivals import share
from vllm_rollout.observe.gaps import GapHistogram
from vllm_rollout.observe.load import RequestRecord
from vllm_rollout.observe.load_log import LOG_NAME, STOP_NAME, LogWriter, WorkerNode
from vllm_rollout.observe.load_plan import LoadPlan

_log = logging.getLogger(__name__)
_TICK_SECONDS = 1.0
_DRAIN_GRACE_SECONDS = 5.0


class Generator:
    """One worker: share `index` of `count` of the plan's arrivals, from `started_at`.

    That is the master's Unix time; `node` says by how much the clock here is before the master's.

    Every finished request is given to `on_request` (record, body bytes received) and, when there
    is a folder for results, written to the worker's log there; a file called `STOP_NAME` in that
    folder ends the sending. `on_end` is called once, when nothing more is sent and every request
    has ended.
    """

    def __init__(
        self,
        plan: LoadPlan,
        *,
        index: int,
        count: int,
        started_at: float,
        node: WorkerNode,
        api_key: str | None,
        results: Path | None,
        on_request: Callable[[RequestRecord, int], None] | None,
        on_end: Callable[[], None],
    ) -> None:
        self._plan = plan
        self._index, self._count = index, count
        # Workers agree on a Unix time; from here on only the steady clock counts.
        zero = time.monotonic() + started_at + node.clock_ahead_seconds - time.time()
        self._completions = Completions(plan, api_key=api_key, zero=zero)
        self._log = results and LogWriter(
            results / LOG_NAME.format(index=index), started_at=started_at, node=node
        )
        self._stop_file = results and results / STOP_NAME
        self._stopped_at = math.inf
        self._on_request = on_request
        self._on_end = on_end
        self._requests = Group()
        self._gaps = GapHistogram()
        self._sent = 0
        self._ended = False
        self._process = psutil.Process()
        self._busy_before = self._busy()
        self._ticker = gevent.spawn(self._tick)
        self._dispatcher = gevent.spawn(self._run)

    def stop(self) -> None:
        """Send no more, wait for the requests under way, and close the log."""
        if not self._ended:
            self._dispatcher.kill()
            self._finish()

    def _run(self) -> None:
        if self._plan.closed:
            self._run_users()
        else:
            self._dispatch()
        self._finish()
        self._on_end()

    def _dispatch(self) -> None:
        now, spawn, sleep = self._completions.now, self._requests.spawn, gevent.sleep
        for number, intended in share(self._plan, self._index, self._count):
            # The event loop's clock is coarse: a sleep may end early, so look again.
            while (early := intended - now()) > 0:
                sleep(early)
            if intended >= self._stopped_at:
                return
            spawn(self._send, number, intended)
            self._sent += 1
            # A dispatcher that is late has not slept: let the requests under way go on.
            sleep(0)

    def _run_users(self) -> None:
        numbers = itertools.count(self._index, self._count)
        own = range(self._index, self._plan.users, self._count)
        gevent.joinall([gevent.spawn(self._use, numbers) for _ in own])

    def _use(self, numbers: Iterator[int]) -> None:
        """One user of a closed loop: each request when the one before has ended."""
        end = self._plan.total_seconds
        while (early := -self._completions.now()) > 0:
            gevent.sleep(early)
        while (now := self._completions.now()) < min(end, self._stopped_at):
            self._sent += 1
            self._send(next(numbers), now)

    def _send(self, number: int, intended: float) -> None:
        record, received = self._completions.send(number, intended)
        if self._log:
            self._log.record(number, record)
        if self._on_request:
            self._on_request(record, received)

    def _finish(self) -> None:
        if self._requests:
            _log.info("Waiting for %d requests under way", len(self._requests))
        self._requests.join(timeout=self._plan.timeout_seconds + _DRAIN_GRACE_SECONDS)
        self._requests.kill()
        self._ended = True
        self._ticker.kill()
        if self._log:
            self._write_tick()
            self._log.end(stopped_at=self._stopped_at, gaps=self._gaps.encoded())

    def _tick(self) -> None:
        while True:
            gevent.sleep(_TICK_SECONDS)
            if self._stop_file and self._stopped_at == math.inf and self._stop_file.exists():
                self._stopped_at = self._completions.now()
            self._write_tick()

    def _write_tick(self) -> None:
        self._gaps.add(self._completions.gaps)
        self._completions.gaps.clear()
        if self._log:
            busy = self._busy() - self._busy_before
            self._log.tick(sent=self._sent, busy_seconds=busy)

    def _busy(self) -> float:
        """CPU seconds of this process so far."""
        times = self._process.cpu_times()
        return float(times.user + times.system)
