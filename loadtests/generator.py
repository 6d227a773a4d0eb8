"""Sends one worker's share of a load: every arrival at its own time, whatever the others do."""

import gc
import itertools
import logging
import math
from collections.abc import Callable
from pathlib import Path

import gevent
import psutil

from loadtests.completions import Completions
from vllm_rollout.load.arrivals import share
from vllm_rollout.load.clock_offset import wall_less_monotonic
from vllm_rollout.load.request_log import LOG_NAME, STOP_NAME, LogWriter, WorkerNode
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import RequestRecord

_log = logging.getLogger(__name__)
_TICK_SECONDS = 1.0
_LOOK_SECONDS = 0.02
_AT_ONCE = 8


class Generator:
    """One worker: share `index` of `count` of the plan's arrivals, from `started_at`.

    That is the master's Unix time; `node` says by how much the clock here is before the master's.

    Every finished request is given to `on_request` (record, body bytes received), which may not
    block, and, when there is a folder for results, written to the worker's log there; a file
    called `STOP_NAME` in that folder ends the sending. `on_end` is called once, when nothing more
    is sent and every request has ended.
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
        zero = started_at + node.clock_ahead_seconds - wall_less_monotonic()
        self._completions = Completions(plan, api_key=api_key, zero=zero, done=self._done)
        self._log = results and LogWriter(
            results / LOG_NAME.format(index=index), started_at=started_at, node=node
        )
        self._stop_file = results and results / STOP_NAME
        self._stopped_at = math.inf
        self._on_request = on_request
        self._on_end = on_end
        self._numbers = itertools.count(index, count)
        self._users = 0
        self._sent = 0
        self._ended = False
        self._process = psutil.Process()
        self._busy_before = self._busy()
        # What is there now stays; to look through it again would make arrivals late.
        gc.freeze()
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
        now, send, sleep = self._completions.now, self._completions.send, gevent.sleep
        for number, intended in share(self._plan, self._index, self._count):
            # The event loop's clock is coarse: a sleep may end early, so look again.
            while (early := intended - now()) > 0:
                sleep(early)
            if intended >= self._stopped_at:
                return
            send(number, intended)
            self._sent += 1
            if self._sent % _AT_ONCE == 0:
                # A dispatcher that is late has not slept: let what has come be read.
                sleep(0)

    def _run_users(self) -> None:
        while (early := -self._completions.now()) > 0:
            gevent.sleep(early)
        self._users = len(range(self._index, self._plan.users, self._count))
        for _ in range(self._users):
            self._use()
        while self._users:
            gevent.sleep(_LOOK_SECONDS)

    def _use(self) -> None:
        """A user of a closed loop: each request when the one before has ended."""
        now = self._completions.now()
        if now < min(self._plan.total_seconds, self._stopped_at):
            self._sent += 1
            self._completions.send(next(self._numbers), now)
        else:
            self._users -= 1

    def _done(self, record: RequestRecord, received: int) -> None:
        if self._log:
            self._log.record(record)
        if self._on_request:
            self._on_request(record, received)
        if self._users:
            self._use()

    def _finish(self) -> None:
        self._users = 0
        if self._completions.under_way:
            _log.info("Waiting for %d requests under way", self._completions.under_way)
        while self._completions.under_way:
            gevent.sleep(_LOOK_SECONDS)
        self._ended = True
        self._completions.close()
        self._ticker.kill()
        if self._log:
            self._write_tick()
            self._log.end(
                stopped_at=None if math.isinf(self._stopped_at) else self._stopped_at,
                gaps=self._completions.gaps.encoded(),
                unknown_gaps=self._completions.unknown_gaps,
            )

    def _tick(self) -> None:
        while True:
            gevent.sleep(_TICK_SECONDS)
            if self._stop_file and self._stopped_at == math.inf and self._stop_file.exists():
                self._stopped_at = self._completions.now()
            self._write_tick()

    def _write_tick(self) -> None:
        if self._log:
            busy = self._busy() - self._busy_before
            self._log.tick(sent=self._sent, busy_seconds=busy)

    def _busy(self) -> float:
        """CPU seconds of this process so far."""
        times = self._process.cpu_times()
        return float(times.user + times.system)
