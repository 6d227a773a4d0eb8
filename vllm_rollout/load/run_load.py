"""Runs a load plan: a generator, followed while it runs, its logs read to the end.

Locust makes the load (`loadtests/`) and logs every request; all figures are made here, from that
log. Whatever goes wrong with the generator makes the result incomplete, never shorter.
"""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from vllm_rollout.load.collect import LoadCollector
from vllm_rollout.load.load_progress import LoadProgress
from vllm_rollout.load.local_generator import API_KEY_VARIABLE, LocalGenerator
from vllm_rollout.model.errors import UnreachableError, UsageError
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import LoadResult, RequestRecord

__all__ = ["API_KEY_VARIABLE", "Generator", "LoadProgress", "run_load"]

_PROGRESS_SECONDS = 1.0


class Generator(Protocol):
    """A load generator that was started. The workers' logs come into the folder `results`."""

    start_seconds: float
    """How long it may take until it sends the first request."""
    end_seconds: float
    """How long it may take to end, once the last request must have."""
    clock_ahead_seconds: float
    """By how much the clock of its master is before this machine's."""

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended and its logs are here, `seconds` at most; return whether so."""

    def problem(self) -> str:
        """Return what went wrong with it until now, or ""."""

    def not_started(self, reason: str) -> UnreachableError:
        """Return the error for a generator that sent nothing: `reason` and its output."""


Start = Callable[[LoadPlan, Path], AbstractContextManager[Generator]]
"""Starts a generator for a plan; the folder is `results`, where the collector's stop file is too.
However the context is left, no load is sent afterwards."""


def run_load(
    plan: LoadPlan,
    *,
    work_dir: Path,
    api_key: str | None = None,
    on_progress: Callable[[LoadProgress], None] | None = None,
    enough: Callable[[Iterable[RequestRecord]], bool] | None = None,
    start: Start | None = None,
) -> LoadResult:
    """Send the load of `plan` and return every judged request.

    Blocks until the run is over: at most the schedule, the timeout of its last request and some
    seconds more. All that it starts is ended when it returns or raises, also on Ctrl-C.

    Args:
        plan: what to send.
        work_dir: a folder for the plan, the request logs and Locust's own log (`locust.log`).
        api_key: bearer token; reaches Locust through its environment only.
        on_progress: called about once a second while requests are sent.
        enough: given the judged requests in order, each once, as soon as all before it have ended;
            when it returns True no more requests are sent.
        start: starts the generator; by default processes on this machine, with `api_key`.

    Raises:
        UsageError: the plan has no end.
        UnreachableError: the generator did not start; the message ends with its output.
    """
    if not math.isfinite(plan.duration_seconds):
        raise UsageError(
            "a load without an end gives no result", remedy="Give the load a duration."
        )
    results = work_dir / "requests"
    collector = LoadCollector(plan, results)
    begin: AbstractContextManager[Generator] = (
        LocalGenerator(plan, work_dir=work_dir, results=results, api_key=api_key)
        if start is None
        else start(plan, results)
    )
    with begin as generator:
        late = _follow(generator, plan, collector, on_progress, enough)
        if collector.started_at is None:
            reason = late or "it ended before it sent a request"
            raise generator.not_started(f"the load generator could not be used: {reason}")
    collector.read(to_the_end=True)
    return collector.result(problem=late or generator.problem())


def _follow(
    generator: Generator,
    plan: LoadPlan,
    collector: LoadCollector,
    on_progress: Callable[[LoadProgress], None] | None,
    enough: Callable[[Iterable[RequestRecord]], bool] | None,
) -> str:
    """Read along until it has ended; return why it was not waited for any longer, or ""."""
    deadline = time.monotonic() + generator.start_seconds
    started = False
    while not generator.wait(_PROGRESS_SECONDS):
        collector.read()
        collector.clock_ahead_seconds = generator.clock_ahead_seconds
        if collector.started_at is not None:
            elapsed = time.time() - collector.started_at
            if not started:
                started = True
                longest = plan.total_seconds + plan.timeout_seconds + generator.end_seconds
                deadline = time.monotonic() - elapsed + longest
            if on_progress is not None:
                on_progress(collector.progress(elapsed_seconds=elapsed))
            if enough is not None and enough(collector.next_in_order()):
                collector.stop()
                enough = None
        if time.monotonic() > deadline:
            return "the generator did not end in time" if started else "it did not start in time"
    collector.read()
    return ""
