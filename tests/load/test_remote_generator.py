"""A generator elsewhere: nothing of its workers' logs is lost, or the result says what is.

Master and workers are real Locust processes without a folder in common; a test pauses and kills
them as a cluster might.
"""

import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web
from support.completions import answer

from vllm_rollout.http_client import HttpAnswer, HttpClient
from vllm_rollout.load.load_progress import LoadProgress
from vllm_rollout.load.process_group import ProcessGroup
from vllm_rollout.load.remote_generator import remotely
from vllm_rollout.load.run_load import run_load
from vllm_rollout.model.errors import UnreachableError, UsageError
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_pods import LoadTask, PodsSeen
from vllm_rollout.model.load_result import LoadResult
from vllm_rollout.ports import free_port

MODULE = "vllm_rollout.load.locust_command"


@dataclass
class Processes:
    """Stands for the pods. `missing` workers never come, the last one comes `late`."""

    folder: Path
    missing: int = 0
    late_seconds: float = 0.0
    unattended_seconds: int = 20
    start_seconds: float = 120.0
    workers: list[ProcessGroup] = field(default_factory=list)
    master: ProcessGroup | None = None
    removed: bool = False
    _port: int = field(default_factory=free_port)
    _stack: ExitStack = field(default_factory=ExitStack)

    def start(self, task: LoadTask) -> None:
        (self.folder / "plan.json").write_text(task.plan)
        port = free_port()
        common = ["--relay", "--relay-port", str(self._port)]
        common += ["--unattended", str(self.unattended_seconds)]
        self.master = self._run(
            *("master", *common, "--plan", str(self.folder / "plan.json"), "--master"),
            *("--master-bind-host", "127.0.0.1", "--master-bind-port", str(port)),
            *("--expect-workers", str(task.workers)),
            *("--expect-workers-max-wait", f"{self.start_seconds:.0f}"),
        )
        address = ["--master-host", "127.0.0.1", "--master-port", str(port)]

        def come(index: int) -> None:
            self.workers.append(self._run(f"worker-{index}", *common, "--worker", *address))

        *punctual, last = range(task.workers - self.missing)
        for index in punctual:
            come(index)
        if self.late_seconds:
            threading.Timer(self.late_seconds, come, [last]).start()
        else:
            come(last)

    def _run(self, name: str, *options: str) -> ProcessGroup:
        folder = self.folder / name
        folder.mkdir()
        group = ProcessGroup(
            [sys.executable, "-m", MODULE, *options, "--results", str(folder / "results")],
            env=os.environ,
            cwd=folder,
            log=folder / "log",
        )
        return self._stack.enter_context(group)

    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def observe(self) -> PodsSeen:
        assert self.master
        dead = [str(i) for i, worker in enumerate(self.workers) if _crashed(worker)]
        return PodsSeen(
            master_ended=not self.master.running,
            failed=f"pod worker-{', '.join(dead)} ended" if dead else "",
            waiting=f"{self.missing} pods wait for CPU" if self.missing else "",
        )

    def remove(self) -> None:
        self.removed = True
        self._stack.close()


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Processes]:
    folder = tmp_path / "pods"
    folder.mkdir()
    pods = Processes(folder)
    yield pods
    pods.remove()


def a_plan(base_url: str, seconds: float = 3) -> LoadPlan:
    return LoadPlan(
        base_url=base_url,
        model="llama-2-7b",
        rate_per_second=60,
        duration_seconds=seconds,
        arrivals="constant",
        timeout_seconds=10,
        workers=2,
    )


def run(plan: LoadPlan, pods: Processes, folder: Path, **options: Any) -> LoadResult:
    return run_load(plan, work_dir=folder, start=remotely(pods), **options)


def outcomes(result: LoadResult) -> Counter[str]:
    return Counter(str(request.outcome) for request in result.requests)


def test_every_request_of_every_worker_arrives_and_nothing_is_left(
    serve: Any, tmp_path: Path, pods: Processes
) -> None:
    progress: list[int] = []
    result = run(
        a_plan(serve(answer)), pods, tmp_path, on_progress=lambda look: progress.append(look.done)
    )
    assert result.incomplete == ""
    assert outcomes(result) == {"ok": 180}
    assert progress
    assert pods.removed
    logs = sorted((tmp_path / "requests").iterdir())
    own = {file.read_bytes() for file in pods.folder.glob("worker-*/results/*")}
    assert {log.read_bytes() for log in logs} == own
    starts = [json.loads(log.read_text().splitlines()[0]) for log in logs]
    assert len({start["at"] for start in starts}) == 1
    assert all(start["node"]["clock_within_seconds"] < 0.25 for start in starts), (
        "the same clock here, and it is asked"
    )


def test_enough_ends_the_sending_at_every_worker(
    serve: Any, tmp_path: Path, pods: Processes
) -> None:
    result = run(
        a_plan(serve(answer), seconds=120), pods, tmp_path, enough=lambda new: len(list(new)) > 5
    )
    assert result.incomplete == ""
    assert result.stopped_after_seconds < 110
    assert set(outcomes(result)) == {"ok"}


@pytest.mark.long
@pytest.mark.parametrize(
    # The master hears nothing of either; `test_run_load.py` has one that stands still every day.
    "how",
    ["kill", pytest.param("suspend", marks=pytest.mark.exhaustive)],
)
def test_a_worker_that_is_lost_is_named_and_the_rest_is_there(
    serve: Any, tmp_path: Path, pods: Processes, how: str
) -> None:
    seen = iter(range(10_000))

    async def striking(request: web.Request) -> web.StreamResponse:
        if next(seen) == 60:
            getattr(psutil.Process(pods.workers[1].pid), how)()
        return await answer(request)

    result = run(a_plan(serve(striking)), pods, tmp_path)
    assert "it crashed, or the network between them is cut" in result.incomplete
    assert "only 1 of 2 load workers ended by themselves" in result.incomplete
    assert ("pod worker-1 ended" in result.incomplete) == (how == "kill")
    assert result.total == 180
    assert outcomes(result)["unsent"] > 0
    assert outcomes(result)["ok"] >= 90, "the other worker's share"


def test_a_master_that_dies_leaves_the_result_incomplete(
    serve: Any, tmp_path: Path, pods: Processes
) -> None:
    seen = iter(range(10_000))

    async def striking(request: web.Request) -> web.StreamResponse:
        if next(seen) == 120:
            assert pods.master
            psutil.Process(pods.master.pid).kill()
        return await answer(request)

    result = run(a_plan(serve(striking), seconds=30), pods, tmp_path)
    assert "the load generator's master ended before its logs were fetched" in result.incomplete
    assert outcomes(result)["unsent"] > 0


def test_a_worker_that_never_comes_is_waited_for_and_said(
    serve: Any, tmp_path: Path, pods: Processes
) -> None:
    pods.missing, pods.start_seconds = 1, 5.0
    with pytest.raises(UnreachableError, match="1 pods wait for CPU"):
        run(a_plan(serve(answer)), pods, tmp_path)
    assert pods.removed


@pytest.mark.long
def test_a_worker_that_comes_late_is_waited_for_and_sends_its_share(
    serve: Any, tmp_path: Path, pods: Processes
) -> None:
    pods.late_seconds = 4.0
    result = run(a_plan(serve(answer)), pods, tmp_path)
    assert result.incomplete == ""
    assert outcomes(result) == {"ok": 180}
    assert len(pods.workers) == 2


def test_ctrl_c_ends_master_and_workers(serve: Any, tmp_path: Path, pods: Processes) -> None:
    def interrupt(_: LoadProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(a_plan(serve(answer), seconds=600), pods, tmp_path, on_progress=interrupt)
    assert pods.master
    assert pods.removed
    assert not any(each.running for each in (pods.master, *pods.workers))


def test_a_load_that_nobody_attends_ends_by_itself(
    serve: Any, tmp_path: Path, pods: Processes
) -> None:
    pods.unattended_seconds = 3
    plan = a_plan(serve(answer), seconds=600).to_json()
    pods.start(LoadTask(plan=plan, base_url="", workers=2, longest_seconds=600))
    assert pods.master
    assert pods.master.wait(120), "3 s after it was last asked"
    assert all(worker.wait(60) for worker in pods.workers)


def test_a_log_that_was_altered_on_the_way_is_no_log(
    serve: Any, tmp_path: Path, pods: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = HttpClient.request

    def altered(client: HttpClient, method: str, url: str, **options: Any) -> HttpAnswer:
        response = real(client, method, url, **options)
        if "/logs/1" in url:
            return replace(response, body=response.body.replace(b'"ok"', b'"OK"'))
        return response

    monkeypatch.setattr(HttpClient, "request", altered)
    result = run(a_plan(serve(answer)), pods, tmp_path)
    assert "did not arrive as it was written" in result.incomplete


def test_an_image_of_another_version_is_refused(
    serve: Any, tmp_path: Path, pods: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_rollout.load.remote_generator.__version__", "99.0")
    with pytest.raises(UsageError, match=r"and this is 99\.0"):
        run(a_plan(serve(answer)), pods, tmp_path)
    assert pods.removed


def _crashed(worker: ProcessGroup) -> bool:
    """Whether it ended, and otherwise than a master's goodbye lets it."""
    if worker.running:
        return False
    worker.end()
    return worker.exit_code != 0
