"""Sends one worker's share of a schedule: every arrival at its own time, whatever the others do."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import gevent
import psutil
from gevent.pool import Group

from loadtests.completions import Completions
from vllm_rollout.observe.arrivals import share
from vllm_rollout.observe.load import LoadPlan, RequestRecord
from vllm_rollout.observe.load_log import LOG_NAME, LogWriter

_log = logging.getLogger(__name__)
_TICK_SECONDS = 1.0
_DRAIN_GRACE_SECONDS = 5.0


class Generator:
    """One worker: share `index` of `count` of the plan's arrivals, from `started_at` (Unix time).

    Every finished request is given to `on_request` (record, body bytes received) and, when there
    is a folder for results, written to the worker's log there. `on_end` is called once, when the
    schedule was sent to its end and every request has ended.
    """

    def __init__(
        self,
        plan: LoadPlan,
        *,
        index: int,
        count: int,
        started_at: float,
        api_key: str | None,
        results: Path | None,
        on_request: Callable[[RequestRecord, int], None],
        on_end: Callable[[], None],
    ) -> None:
        self._plan = plan
        self._arrivals = share(plan, index, count)
        # Workers agree on a Unix time; from here on only the steady clock counts.
        zero = time.monotonic() + (started_at - time.time())
        self._completions = Completions(plan, api_key=api_key, zero=zero)
        self._log = results and LogWriter(
            results / LOG_NAME.format(index=index), started_at=started_at
        )
        self._on_request = on_request
        self._on_end = on_end
        self._requests = Group()
        self._sent = 0
        self._ended = False
        self._cpu = math.nan
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only sets the point to measure from
        self._ticker = gevent.spawn(self._tick)
        self._dispatcher = gevent.spawn(self._dispatch)

    def stop(self) -> None:
        """Send no more, wait for the requests under way, and close the log."""
        if not self._ended:
            self._dispatcher.kill()
            self._finish()

    def _dispatch(self) -> None:
        for number, intended in self._arrivals:
            # The event loop's clock is coarse: a sleep may end early, so look again.
            while (early := intended - self._completions.now()) > 0:
                gevent.sleep(early)
            self._requests.spawn(self._send, number, intended)
            self._sent += 1
            # A dispatcher that is late has not slept: let the requests under way go on.
            gevent.sleep(0)
        self._finish()
        self._on_end()

    def _send(self, number: int, intended: float) -> None:
        record, received = self._completions.send(intended)
        if self._log:
            self._log.record(number, record)
        self._on_request(record, received)

    def _finish(self) -> None:
        if self._requests:
            _log.info("Waiting for %d requests under way", len(self._requests))
        self._requests.join(timeout=self._plan.timeout_seconds + _DRAIN_GRACE_SECONDS)
        self._requests.kill()
        self._ended = True
        self._ticker.kill()
        if self._log:
            self._log.tick(sent=self._sent, cpu=self._cpu)
            self._log.end()

    def _tick(self) -> None:
        while True:
            gevent.sleep(_TICK_SECONDS)
            self._cpu = self._process.cpu_percent() / 100
            if self._log:
                self._log.tick(sent=self._sent, cpu=self._cpu)
