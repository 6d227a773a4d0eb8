"""Open-loop load on an OpenAI-compatible server, on Locust.

    locust -f loadtests/locustfile.py --host http://127.0.0.1:8000 \\
        --model llama-2-7b --rate 10 --run-time 1m

works alone, with or without `--headless`, and with `--processes` or `--master` and `--worker`; the
gates run the same file. Requests are sent by a schedule, not by Locust's users: the number of users
has no influence but with `--arrivals closed`. Latencies run from the time at which a request was
due. Locust's own table rounds them; `--results` writes each request down exactly. A bearer key is
read from the environment variable VLLM_ROLLOUT_API_KEY.
"""

import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import gevent
from locust import User, events, runners, task
from locust.runners import MasterRunner, WorkerRunner

# Locust takes index 0 away again after the import.
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from loadtests.generator import Generator
from loadtests.log_relay import MasterRelay, WorkerRelay
from loadtests.log_server import LogServer
from loadtests.options import add_options, plan_of
from loadtests.tokens import TokensPage
from vllm_rollout.load.request_log import WorkerNode
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import RequestRecord

API_KEY = "VLLM_ROLLOUT_API_KEY"
_DONE = "schedule_done"
_HEAD_START_SECONDS = 0.2
_HEAD_START_OF_WORKERS_SECONDS = 1.0
_LOOK_SECONDS = 0.5
_SILENT_SECONDS = 15.0
_HEARTBEATS_MISSED = 10
_log = logging.getLogger(__name__)


class Schedule(User):
    """Locust runs as long as it has a user; this one does nothing."""

    @task
    def wait_for_the_end(self) -> None:
        """Sleep until Locust ends the run."""
        gevent.sleep(_LOOK_SECONDS)


class LoadRun:
    """Ties the generator to Locust's start and stop, in each of its processes.

    The master (or the only process) makes the plan and the time to start, and Locust hands both to
    the workers among its options. Workers say when their share is done; when all that are left
    have, the master ends the run.
    """

    def __init__(self, environment: Any, runner: Any) -> None:
        self._environment = environment
        self._options = environment.parsed_options
        self._runner = runner
        self._duration_seconds = math.inf
        self._generator: Generator | None = None
        self._tokens = TokensPage(environment, runner)
        self._running = False
        self._workers_done = 0
        # The master's options come over a worker's own when the run starts.
        self._own_results: str = self._options.results
        self._to_master: WorkerRelay | None = None
        self._from_workers: MasterRelay | None = None
        environment.events.test_start.add_listener(self._start)
        environment.events.test_stopping.add_listener(self._stop)
        if isinstance(runner, MasterRunner):
            runner.register_message(_DONE, self._count_worker)
        if self._options.relay:
            self._attach_relay()
        if starter := self._options.end_with_parent:
            worker = isinstance(runner, WorkerRunner)  # which the master has started
            gevent.spawn(self._end_with_parent, os.getppid() if worker else starter)
        if self._options.headless and not isinstance(runner, WorkerRunner):
            self._limit_run_time()

    def _attach_relay(self) -> None:
        folder = Path(self._own_results)
        if isinstance(self._runner, WorkerRunner):
            self._to_master = WorkerRelay(self._runner, folder)
            return
        self._from_workers = MasterRelay(self._runner, folder)
        log_server = LogServer(
            self._from_workers,
            folder,
            port=self._options.relay_port,
            unattended_seconds=self._options.unattended,
            on_unattended=self._runner.quit,
        )
        self._environment.events.quitting.add_listener(log_server.wait)

    def _limit_run_time(self) -> None:
        """Let the schedule end the run: Locust's own limit cuts off the requests under way."""
        if self._options.run_time:
            self._duration_seconds = self._options.run_time
            self._options.run_time = None
        try:
            self._plan()
        except RolloutError as error:
            sys.exit(f"{error}\n{error.remedy}")

    def _plan(self) -> LoadPlan:
        return plan_of(
            self._options, host=self._environment.host, duration_seconds=self._duration_seconds
        )

    def _start(self, **_: Any) -> None:
        self._running, self._workers_done = True, 0
        try:
            if not isinstance(self._runner, WorkerRunner):
                self._prepare()
            if isinstance(self._runner, MasterRunner):
                gevent.spawn(self._end_with_workers)
            else:
                self._generate()
        except RolloutError as error:
            _log.error("%s\n%s", error, error.remedy)
            gevent.spawn(self._end)

    def _prepare(self) -> None:
        """Decide what the workers need to know, where Locust passes it on to them."""
        if isinstance(self._runner, MasterRunner):
            clients = self._runner.clients
            workers = [node.id for node in clients.ready + clients.running + clients.spawning]
            head_start = _HEAD_START_OF_WORKERS_SECONDS
        else:
            workers, head_start = [self._runner.client_id], _HEAD_START_SECONDS
        self._options.load_plan = self._plan().to_json()
        self._options.load_workers = workers
        self._options.load_started_at = time.time() + head_start
        if self._from_workers is not None:
            self._from_workers.start(workers)

    def _generate(self) -> None:
        workers = self._options.load_workers
        index = workers.index(self._runner.client_id)
        relay = self._to_master
        results = self._own_results or self._options.results
        self._generator = Generator(
            LoadPlan.from_json(self._options.load_plan),
            index=index,
            count=len(workers),
            started_at=self._options.load_started_at,
            node=relay.node() if relay else WorkerNode(name=f"process {os.getpid()}"),
            api_key=os.environ.get(API_KEY),
            results=Path(results) if results else None,
            # Driven by the suite, nobody reads Locust's own tables, and filling them takes a fifth
            # of what a request costs.
            on_request=None if self._options.plan else self._show,
            on_end=self._share_done,
        )
        if relay is not None:
            relay.start(index)

    def _show(self, record: RequestRecord, received: int) -> None:
        """Tell Locust's tables and web page about a request."""
        name = record.request_class or "completion"
        self._tokens.add(name, record)
        failed = None if record.ok else f"{record.outcome}: {record.error}"
        self._fire("POST", name, record.latency_seconds, received, failed)
        self._fire("TTFT", name, record.ttft_seconds)
        sent, end, itl = record.sent, record.end, record.itl_seconds
        if not record.ok or record.completion_tokens < 2 or itl is None:
            return
        self._fire("ITL", name, itl)
        # Locust's tables have one unit; the column of times reads tokens per second here.
        if sent is not None and end is not None and end > sent:
            self._fire("tokens/s", name, record.completion_tokens / (end - sent) / 1000)

    def _fire(
        self,
        kind: str,
        name: str,
        seconds: float | None,
        received: int = 0,
        failed: str | None = None,
    ) -> None:
        if seconds is None:
            return
        self._environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=seconds * 1000,
            response_length=received,
            exception=failed,
            context={},
        )

    def _share_done(self) -> None:
        if self._to_master is not None:
            self._to_master.end()
        if isinstance(self._runner, WorkerRunner):
            self._runner.send_message(_DONE)
        else:
            self._end()

    def _count_worker(self, **_: Any) -> None:
        self._workers_done += 1

    def _end_with_workers(self) -> None:
        # A worker that went missing is not waited for: its log has no end, and that is noticed.
        relay = self._from_workers
        while (
            relay.awaited(_SILENT_SECONDS)
            if relay
            else self._running and self._workers_done < self._runner.worker_count
        ):
            gevent.sleep(_LOOK_SECONDS)
        if self._running or self._options.headless:
            self._end()

    def _end_with_parent(self, parent: int) -> None:
        while os.getppid() == parent:
            gevent.sleep(_LOOK_SECONDS)
        self._runner.quit()

    def _end(self) -> None:
        if self._options.headless:
            self._runner.quit()
        else:
            self._runner.stop()

    def _stop(self, **_: Any) -> None:
        self._running = False
        if self._generator is not None:
            self._generator.stop()
            self._generator = None
            if self._to_master is not None:
                self._to_master.end()


def attach(environment: Any, runner: Any, **_: Any) -> None:
    """Attach the load run to this process's Locust."""
    LoadRun(environment, runner)


# Locust gives a worker up after three seconds of silence, which a busy machine may well take, and
# ends the run without it. It has no option for that.
runners.HEARTBEAT_LIVENESS = _HEARTBEATS_MISSED

_events: Any = events
_events.init_command_line_parser.add_listener(add_options)
_events.init.add_listener(attach)
