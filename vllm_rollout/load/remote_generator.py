"""A load generator in pods: Locust's master and workers, whose logs are fetched from the master.

The master serves the workers' logs (`loadtests/log_server.py`); they are copied here, byte for
byte, while the load runs, and compared with the digests that the workers made of them. A log that
does not arrive whole is reported and makes the result incomplete.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

from vllm_rollout import __version__
from vllm_rollout.http_client import Failure, HttpAnswer, HttpClient, HttpError
from vllm_rollout.load.request_log import LOG_NAME, STOP_NAME, log_digest
from vllm_rollout.model.errors import RolloutError, UnreachableError, UsageError
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_pods import LoadPods, LoadTask, PodsSeen

_log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 10.0
_LOST_SECONDS = 30.0
"""The master ends when it is not asked for this long; then nothing more is to be had."""
_ASK_SECONDS = 3.0
_MOST_BYTES = 1 << 32
_MAX_BYTES = 1 << 23
"""The master sends at most half of this at once."""


def remotely(
    pods: LoadPods,
) -> Callable[[LoadPlan, Path], AbstractContextManager["RemoteGenerator"]]:
    """Starts the generator in `pods`, for `run_load`, and removes them however the run ends."""

    @contextmanager
    def start(plan: LoadPlan, results: Path) -> Iterator[RemoteGenerator]:
        try:
            pods.start(_task(plan))
            with RemoteGenerator(pods, results) as generator:
                yield generator
        finally:
            pods.remove()

    return start


def _task(plan: LoadPlan) -> LoadTask:
    return LoadTask(
        plan=plan.to_json(),
        base_url=plan.base_url,
        workers=plan.workers,
        longest_seconds=plan.total_seconds + plan.timeout_seconds,
    )


class RemoteGenerator:
    """A `Generator` that runs in pods that were started."""

    end_seconds = 90.0

    def __init__(self, pods: LoadPods, results: Path) -> None:
        results.mkdir(parents=True, exist_ok=True)
        self.start_seconds = pods.start_seconds
        self.clock_ahead_seconds = 0.0
        self._clock_within = float("inf")
        self._pods = pods
        self._results = results
        self._http = HttpClient(max_bytes=_MAX_BYTES)
        self._heard: float | None = None
        self._asked_at = 0.0
        self._seen = PodsSeen(master_ended=False)
        self._problem = ""
        self._ended = False
        self._stop_sent = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def wait(self, seconds: float) -> bool:
        """Fetch what is new, then wait; return whether the run is over and everything fetched.

        Raises:
            UsageError: the pods hold another version of the suite.
        """
        until = time.monotonic() + seconds
        if not self._ended:
            self._fetch()
        if not self._ended and time.monotonic() - self._asked_at > _ASK_SECONDS:
            self._ask_pods()
            if self._seen.failed and not self._path(0).exists():
                self._finish("")  # they will never come
        time.sleep(max(0.0, until - time.monotonic()) if not self._ended else 0.0)
        return self._ended

    def problem(self) -> str:
        """Return what went wrong until now: failed pods, logs that did not arrive whole; or ""."""
        return "; ".join(filter(None, [self._seen.failed, self._problem]))

    def not_started(self, reason: str) -> UnreachableError:
        """The error for a generator that sent nothing, with what keeps its pods."""
        self._ask_pods()
        lines = [reason, self._seen.failed, self._seen.waiting, self._problem]
        return UnreachableError(
            "\n".join(filter(None, lines)),
            address="the load generator's pods",
            remedy="Make room for them or ask for less (`kubernetes.load_generator.values`), or "
            "give them more time (`kubernetes.load_generator.start_timeout`).",
        )

    def _fetch(self) -> None:
        try:
            state = self._state()
            logs = state["logs"]
            for index, log in enumerate(logs):
                self._copy(index, int(log["size"]))
            if not self._stop_sent and (self._results / STOP_NAME).exists():
                self._ask("POST", "/stop")
                self._stop_sent = True
            self._heard = time.monotonic()
            if state["state"] == "ended":
                self._end(logs)
        except (HttpError, ValueError, KeyError, TypeError) as error:
            self._unheard(error)

    def _state(self) -> Any:
        asked = time.monotonic()
        state: Any = self._ask("GET", "/state").json(dict)
        within = (time.monotonic() - asked) / 2
        if state["version"] != __version__:
            raise UsageError(
                f"the load generator's image holds vllm-rollout {state['version']}, and this is "
                f"{__version__}",
                remedy="Build the image of this version: `kubernetes.load_generator.image`.",
            )
        if within < self._clock_within:
            self._clock_within = within
            self.clock_ahead_seconds = float(state["now"]) + within - time.time()
        return state

    def _copy(self, index: int, size: int) -> None:
        path = self._path(index)
        have = path.stat().st_size if path.exists() else 0
        while have < size:
            data = self._ask("GET", f"/logs/{index}?from={have}").body
            if not data or have + len(data) > _MOST_BYTES:
                raise ValueError(f"log {index} ends at byte {have} of {size}")
            with path.open("ab") as file:
                file.write(data)
            have += len(data)

    def _end(self, logs: list[dict[str, Any]]) -> None:
        """Hold every log against its worker's digest, and let the master go."""
        problems = []
        for index, log in enumerate(logs):
            name = f"load worker {log['worker']}"
            path = self._path(index)
            if not log["sha256"]:
                silent = f"{name} has not answered the master for {log['silent_seconds']:.0f} s"
                problems.append(f"{silent}: it crashed, or the network between them is cut")
            elif not path.exists() or log_digest(path) != log["sha256"]:
                problems.append(f"the log of {name} did not arrive as it was written")
        self._ask_pods()
        self._finish("; ".join(problems))
        self._ask("POST", "/fetched")

    def _unheard(self, error: Exception) -> None:
        if self._ended:  # the master went as soon as it was let go
            return
        since = None if self._heard is None else time.monotonic() - self._heard
        if since is None or since > _ASK_SECONDS:
            self._ask_pods()
        if self._seen.master_ended or (since is None and self._seen.failed):
            self._finish("the load generator's master ended before its logs were fetched")
        elif since is not None and since > _LOST_SECONDS:
            self._finish(f"the load generator's master does not answer: {error!r}")

    def _finish(self, problem: str) -> None:
        self._problem = problem
        self._ended = True

    def _ask_pods(self) -> None:
        self._asked_at = time.monotonic()
        try:
            self._seen = self._pods.observe()
        except RolloutError as error:
            # The API server may be away for a moment; what was seen before stays true enough.
            _log.warning("the state of the load generator's pods is unknown: %s", error)

    def _path(self, index: int) -> Path:
        return self._results / LOG_NAME.format(index=index)

    def _ask(self, method: str, path: str) -> HttpAnswer:
        url = self._pods.url() + path
        answer = self._http.request(method, url, timeout_seconds=_TIMEOUT_SECONDS)
        if answer.status != HTTPStatus.OK:
            raise HttpError(Failure.UNREADABLE, f"{path} answers {answer.status}")
        return answer
