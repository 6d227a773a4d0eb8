"""Runs a load plan: Locust in processes of its own, followed while it runs, read to the end.

Locust makes the load (`loadtests/`) and logs every request; all figures are made here, from that
log. Whatever goes wrong with the generator makes the result incomplete, never shorter.
"""

import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from vllm_rollout.errors import UnreachableError, UsageError
from vllm_rollout.observe.load import LoadResult, RequestRecord
from vllm_rollout.observe.load_collect import LoadCollector
from vllm_rollout.observe.load_plan import LoadPlan
from vllm_rollout.observe.load_progress import LoadProgress
from vllm_rollout.observe.process_group import ProcessGroup
from vllm_rollout.resources import LOADTESTS

__all__ = ["API_KEY_VARIABLE", "LoadProgress", "run_load"]

API_KEY_VARIABLE = "VLLM_ROLLOUT_API_KEY"
_LONGEST_START_SECONDS = 60
_GRACE_SECONDS = 15.0
_PROGRESS_SECONDS = 1.0
_LAST_LINES = 15


def run_load(
    plan: LoadPlan,
    *,
    work_dir: Path,
    api_key: str | None = None,
    on_progress: Callable[[LoadProgress], None] | None = None,
    enough: Callable[[Iterable[RequestRecord]], bool] | None = None,
) -> LoadResult:
    """Send the load of `plan` and return every judged request.

    Blocks until the run is over: at most the schedule, the timeout of its last request and some
    seconds more. All processes that it starts are ended when it returns or raises, also on Ctrl-C.

    Args:
        plan: what to send.
        work_dir: a folder for the plan, the request logs and Locust's own log (`locust.log`).
        api_key: bearer token; reaches Locust through its environment only.
        on_progress: called about once a second while requests are sent.
        enough: given the judged requests in order, each once, as soon as all before it have ended;
            when it returns True no more requests are sent.

    Raises:
        UsageError: the plan has no end.
        UnreachableError: the generator did not start; the message ends with its last lines.
    """
    if not math.isfinite(plan.duration_seconds):
        raise UsageError(
            "a load without an end gives no result", remedy="Give the load a duration."
        )
    results = work_dir / "requests"
    collector = LoadCollector(plan, results)
    plan_file = work_dir / "plan.json"
    plan_file.write_text(plan.to_json(), encoding="utf-8")
    locust_log = work_dir / "locust.log"
    with ProcessGroup(
        _command(plan, plan_file, results), env=_environment(api_key), cwd=work_dir, log=locust_log
    ) as locust:
        late = _follow(locust, plan, collector, on_progress, enough)
    collector.read(to_the_end=True)
    if collector.started_at is None:
        raise _not_started(locust_log, late)
    return collector.result(problem=late or _exit_problem(locust.exit_code))


def _follow(
    locust: ProcessGroup,
    plan: LoadPlan,
    collector: LoadCollector,
    on_progress: Callable[[LoadProgress], None] | None,
    enough: Callable[[Iterable[RequestRecord]], bool] | None,
) -> str:
    """Read along until Locust exits; return why it was not waited for any longer, or ""."""
    deadline = time.monotonic() + _LONGEST_START_SECONDS
    started = False
    while not locust.wait(_PROGRESS_SECONDS):
        collector.read()
        if collector.started_at is not None:
            elapsed = time.time() - collector.started_at
            if not started:
                started = True
                longest = plan.total_seconds + plan.timeout_seconds + _GRACE_SECONDS
                deadline = time.monotonic() - elapsed + longest
            if on_progress is not None:
                on_progress(collector.progress(elapsed_seconds=elapsed))
            if enough is not None and enough(collector.next_in_order()):
                collector.stop()
                enough = None
        if time.monotonic() > deadline:
            return "the generator did not end in time" if started else "it did not start in time"
    return ""


def _command(plan: LoadPlan, plan_file: Path, results: Path) -> list[str]:
    command = [sys.executable, "-m", "locust", "--locustfile", str(LOADTESTS / "locustfile.py")]
    command += ["--headless", "--only-summary", "--end-with-parent"]
    # A failed request is a measurement, not an error of the generator's.
    command += ["--exit-code-on-error", "0"]
    command += ["--plan", str(plan_file), "--results", str(results)]
    if plan.workers > 1:
        port = str(_free_port())
        command += ["--processes", str(plan.workers)]
        command += ["--expect-workers-max-wait", str(_LONGEST_START_SECONDS)]
        command += ["--master-bind-host", "127.0.0.1", "--master-bind-port", port]
        command += ["--master-host", "127.0.0.1", "--master-port", port]
    return command


def _environment(api_key: str | None) -> dict[str, str]:
    """This process's environment, without settings of Locust's that are meant for other runs."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")
    }
    environment.pop(API_KEY_VARIABLE, None)
    if api_key:
        environment[API_KEY_VARIABLE] = api_key
    return environment


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _exit_problem(code: int | None) -> str:
    if code == 0:
        return ""
    if code is not None and code < 0:
        return f"the load generator was killed by signal {-code}"
    return f"the load generator ended with exit code {code}"


def _not_started(log: Path, late: str) -> UnreachableError:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
    reason = late or "it ended before it sent a request"
    return UnreachableError(
        "\n".join([f"the load generator could not be used: {reason}", *lines]),
        address="python -m locust",
        remedy="Correct what its last lines say. On a busy machine use fewer `load.workers`.",
    )
