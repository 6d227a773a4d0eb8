"""A real Locust sends the plan's load, and nothing that happens is lost or made to look better."""

import asyncio
import itertools
import math
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from aiohttp import web
from support.completions import EVENTS, NOAUTH, answer

from vllm_rollout.load.arrivals import arrivals
from vllm_rollout.load.run_load import LoadProgress, run_load
from vllm_rollout.model.errors import UnreachableError, UsageError
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import LoadResult

OVERLOAD = NOAUTH.parent / "overload503"

Serve = Callable[..., str]


def a_plan(base_url: str, **changes: object) -> LoadPlan:
    plan = LoadPlan(
        base_url=base_url,
        model="llama-2-7b",
        rate_per_second=100,
        duration_seconds=1,
        arrivals="constant",
        timeout_seconds=10,
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


def of_this_test(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if _is_locust(child)]


def _is_locust(process: psutil.Process) -> bool:
    try:
        return "locust" in process.cmdline()
    except psutil.Error:  # it has just ended
        return False


def outcomes(result: LoadResult) -> Counter[str]:
    return Counter(str(request.outcome) for request in result.requests)


class Misbehaving:
    """Treats its n-th request in the n-th way, and begins again after the last."""

    def __init__(self) -> None:
        self._ways = itertools.cycle(
            (
                self.overloaded,
                self.unavailable,
                self.broken,
                self.cut,
                self.reset,
                self.silent,
                answer,
            )
        )

    async def treat(self, request: web.Request) -> web.StreamResponse:
        return await next(self._ways)(request)

    async def stream(self, request: web.Request, *pieces: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        return response

    async def overloaded(self, request: web.Request) -> web.StreamResponse:
        body = (OVERLOAD / "completion_stream_overload_http200.body").read_bytes()
        return await self.stream(request, body)

    async def unavailable(self, request: web.Request) -> web.StreamResponse:
        key = request.headers["Authorization"].removeprefix("Bearer ")
        return web.json_response({"error": {"message": f"no room for {key}"}}, status=500)

    async def broken(self, request: web.Request) -> web.StreamResponse:
        return await self.stream(request, EVENTS[0], b'data: {"id": "cmpl\n\n')

    async def cut(self, request: web.Request) -> web.StreamResponse:
        response = await self.stream(request, *EVENTS[:2])
        assert request.transport is not None
        request.transport.close()
        return response

    async def reset(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def silent(self, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()


def test_every_bad_end_has_its_name_and_none_is_a_success(serve: Serve, tmp_path: Path) -> None:
    plan = a_plan(serve(Misbehaving().treat), rate_per_second=35, timeout_seconds=5)
    result = run_load(plan, work_dir=tmp_path, api_key="sk-hush")
    assert outcomes(result) == {
        "http_error": 10,
        "malformed": 5,
        "truncated": 5,
        "connection": 5,
        "timeout": 5,
        "ok": 5,
    }
    assert result.failures_by_kind["http_error 503"] == 5, "the code inside the 200 stream"
    assert result.failures_by_kind["http_error 500"] == 5
    assert result.incomplete == ""
    assert result.censored == 30
    errors = {request.error for request in result.requests}
    assert "500 no room for ***" in errors
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"sk-hush" not in file.read_bytes(), file


@pytest.mark.parametrize("shown_by", ["x-cache: HIT", "came before"])
def test_answers_from_a_cache_leave_the_result_incomplete(
    serve: Serve, tmp_path: Path, shown_by: str
) -> None:
    bodies = []

    async def cache(request: web.Request) -> web.StreamResponse:
        text = await request.text()
        bodies.append(text)
        assert "no-store" in request.headers["Cache-Control"]
        headers = {"X-Cache": "HIT"} if shown_by == "x-cache: HIT" else {}
        return web.Response(body=b"".join(EVENTS), headers=headers)

    result = run_load(a_plan(serve(cache), rate_per_second=20, nonce="c0ffee"), work_dir=tmp_path)

    assert outcomes(result) == {"ok": 20}
    assert re.search(rf"(20|19) of 20 answers came from a cache.*{shown_by}", result.incomplete)
    assert len(set(bodies)) == 20


def test_a_server_that_is_not_there_refuses_every_request(tmp_path: Path) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # bound, so nobody else listens there, but not listening
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        result = run_load(a_plan(url, rate_per_second=20), work_dir=tmp_path)
    assert outcomes(result) == {"connection": 20}
    assert result.latencies_seconds == ()


def test_a_server_that_never_answers_ends_in_timeouts_by_the_deadline(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        plan = a_plan(url, rate_per_second=20, timeout_seconds=0.5, stream=False)
        result = run_load(plan, work_dir=tmp_path)
    assert outcomes(result) == {"timeout": 20}
    assert all(request.latency_seconds >= 0.5 for request in result.requests)
    assert result.incomplete == ""


def test_constant_arrivals_are_all_sent_and_the_warm_up_is_not_judged(
    serve: Serve, tmp_path: Path
) -> None:
    seen: list[LoadProgress] = []
    plan = a_plan(serve(answer), warmup_seconds=0.5, duration_seconds=3)
    result = run_load(plan, work_dir=tmp_path, on_progress=seen.append)
    assert outcomes(result) == {"ok": 300}
    assert [request.intended for request in result.requests] == [
        number / 100 for number in range(50, 350)
    ]
    assert result.incomplete == ""
    for request in result.requests:
        times = (request.intended, request.sent, request.first_token, request.end)
        known = [time for time in times if time is not None]  # a stall here hides a first token
        assert known == sorted(known)
        assert len(known) >= 3
        assert (request.status, request.prompt_tokens, request.completion_tokens) == (200, 2, 4)
    assert 0 < result.generator_cpu < 2
    assert abs(result.started_at - time.time()) < 60
    last = seen[-1]
    assert last.planned == 350
    assert 0 < last.done <= last.sent <= 350
    assert last.failures == 0
    p50, p95 = last.latency.percentile(50), last.latency.percentile(95)
    assert last.ttft.percentile(50) <= p50 <= p95 < 60
    assert [look.elapsed_seconds for look in seen] == sorted(look.elapsed_seconds for look in seen)


def test_poisson_arrivals_are_the_schedule_of_the_seed_and_answers_may_come_whole(
    serve: Serve, tmp_path: Path
) -> None:
    plan = a_plan(serve(answer), arrivals="poisson", seed=3, stream=False)
    result = run_load(plan, work_dir=tmp_path)
    assert outcomes(result) == {"ok": len(list(arrivals(plan)))}
    assert [request.intended for request in result.requests] == pytest.approx(
        list(arrivals(plan)), abs=1e-6
    )
    assert all(request.first_token is None for request in result.requests)
    assert {request.completion_tokens for request in result.requests} == {8}


def test_a_frozen_server_is_charged_for_every_request_that_was_due_meanwhile(
    serve: Serve, tmp_path: Path
) -> None:
    """No coordinated omission: all that were due in the freeze are charged for what was left."""
    numbers = itertools.count()
    frozen: list[float] = []

    async def freezing(request: web.Request) -> web.StreamResponse:
        if next(numbers) == 50:
            frozen.append(time.time())
            time.sleep(0.5)  # the whole server stands still
            frozen.append(time.time())
        return await answer(request)

    result = run_load(a_plan(serve(freezing), duration_seconds=2), work_dir=tmp_path)
    assert outcomes(result) == {"ok": 200}
    begin, end = (at - result.started_at for at in frozen)
    due = [request for request in result.requests if begin <= request.intended <= end]
    assert len(due) == pytest.approx(100 * (end - begin), abs=1)
    for request in due:
        assert request.latency_seconds >= end - request.intended - 0.001


def test_two_workers_share_the_schedule_exactly(serve: Serve, tmp_path: Path) -> None:
    result = run_load(a_plan(serve(answer), workers=2), work_dir=tmp_path)
    assert outcomes(result) == {"ok": 100}
    assert result.incomplete == ""
    logs = sorted((tmp_path / "requests").iterdir())
    assert [log.name for log in logs] == ["worker-0.jsonl", "worker-1.jsonl"]
    assert [log.read_text().count('"ok"') for log in logs] == [50, 50]


class StrikingAt:
    """Answers; does `strike` to the load worker that was started last, at the 100th request."""

    def __init__(self, strike: Callable[[psutil.Process], None]) -> None:
        self._strike = strike
        self._numbers = itertools.count()
        self.struck = psutil.Process()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if next(self._numbers) == 100:
            self.struck = max(of_this_test(psutil.Process()), key=lambda process: process.pid)
            self._strike(self.struck)
        return await answer(request)


@pytest.mark.parametrize(
    # Of two, the master misses the heartbeats, as of one that stands still.
    "workers",
    [1, pytest.param(2, marks=pytest.mark.exhaustive)],
)
def test_a_worker_killed_while_it_runs_leaves_the_result_incomplete_and_nothing_out(
    serve: Serve, tmp_path: Path, workers: int
) -> None:
    server = StrikingAt(psutil.Process.kill)
    plan = a_plan(serve(server.answer), duration_seconds=3, workers=workers)
    result = run_load(plan, work_dir=tmp_path)
    assert f"only {workers - 1} of {workers} load workers ended by themselves" in result.incomplete
    assert f"(process {server.struck.pid})" in result.incomplete
    assert ("killed by signal 9" in result.incomplete) == (workers == 1)
    assert result.total == 300
    assert outcomes(result)["unsent"] > 0
    assert f"{outcomes(result)['unsent']} of 300 requests" in result.incomplete


@pytest.mark.long
def test_a_worker_that_stands_still_is_missed_and_not_waited_for(
    serve: Serve, tmp_path: Path
) -> None:
    server = StrikingAt(psutil.Process.suspend)
    plan = a_plan(serve(server.answer), duration_seconds=3, timeout_seconds=3, workers=2)
    result = run_load(plan, work_dir=tmp_path)
    assert "only 1 of 2 load workers ended by themselves" in result.incomplete
    assert f"(process {server.struck.pid})" in result.incomplete
    assert result.total == 300
    assert f"{outcomes(result)['unsent']} of 300 requests" in result.incomplete
    assert outcomes(result)["unsent"] > 0
    _, alive = psutil.wait_procs([server.struck], timeout=20)
    assert not alive


def test_a_worker_that_stands_still_for_a_moment_loses_nothing_and_its_requests_count_as_late(
    serve: Serve, tmp_path: Path
) -> None:
    """The other worker has long been done when this one goes on."""
    moment = 3.0

    def pause(worker: psutil.Process) -> None:
        worker.suspend()
        threading.Timer(moment, worker.resume).start()

    server = StrikingAt(pause)
    plan = a_plan(serve(server.answer), duration_seconds=2, workers=2)
    result = run_load(plan, work_dir=tmp_path)
    assert result.incomplete == ""
    assert outcomes(result) == {"ok": 200}
    assert result.lag_percentile(99) > moment - plan.duration_seconds


def test_an_interrupted_run_leaves_no_process(serve: Serve, tmp_path: Path) -> None:
    def interrupt(_: LoadProgress) -> None:
        started.extend(of_this_test(psutil.Process()))
        raise KeyboardInterrupt

    started: list[psutil.Process] = []
    plan = a_plan(serve(answer), duration_seconds=60, workers=2)
    with pytest.raises(KeyboardInterrupt):
        run_load(plan, work_dir=tmp_path, on_progress=interrupt)
    assert len(started) == 3
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive


@pytest.mark.parametrize("killed_when", ["started", "running"])
def test_load_ends_when_the_process_that_asked_for_it_is_killed(
    serve: Serve, tmp_path: Path, killed_when: str
) -> None:
    """Also where the shell that put it into the background has SIGINT ignored."""
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from vllm_rollout.model.load_plan import LoadPlan
        from vllm_rollout.load.run_load import LocalGenerator, run_load
        plan, folder = LoadPlan.from_json(sys.argv[1]), Path(sys.argv[2])
        class Told(LocalGenerator):
            def __enter__(self):
                print("started", flush=True)
                return self
        if sys.argv[3] == "started":
            with Told(plan, work_dir=folder, results=folder, api_key=None) as generator:
                generator.wait(60)
        run_load(plan, work_dir=folder, on_progress=lambda _: print("running", flush=True))
    """)
    plan = a_plan(serve(answer), duration_seconds=60)
    command = [sys.executable, "-c", script, plan.to_json(), str(tmp_path), killed_when]
    with subprocess.Popen(
        ["env", "--ignore-signal=INT,TERM", *command],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().decode().strip() == killed_when
        started = of_this_test(psutil.Process(owner.pid))
        owner.kill()
    assert started
    _, alive = psutil.wait_procs(started, timeout=20)
    for process in alive:
        process.kill()
    assert not alive


def test_a_generator_that_cannot_start_says_why(tmp_path: Path) -> None:
    plan = a_plan("http://127.0.0.1:9", duration_seconds=60)
    with pytest.raises(UnreachableError, match="an HTTP header cannot carry") as caught:
        run_load(plan, work_dir=tmp_path, api_key="two\nlines")
    assert caught.value.remedy
    assert "two" not in str(caught.value)


def test_nothing_to_judge_is_incomplete_and_no_end_is_refused(serve: Serve, tmp_path: Path) -> None:
    plan = a_plan(serve(answer), rate_per_second=0.5, warmup_seconds=0.1, duration_seconds=0.1)
    result = run_load(plan, work_dir=tmp_path)
    assert (result.total, result.incomplete) == (0, "the schedule holds no request")
    with pytest.raises(UsageError, match="without an end"):
        run_load(replace(plan, duration_seconds=math.inf), work_dir=tmp_path)
