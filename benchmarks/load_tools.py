"""What the load benchmarks share: the server and the suite's load, each on a core of its own."""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from vllm_rollout.load.clock_offset import wall_less_monotonic
from vllm_rollout.load.run_load import LoadProgress, run_load
from vllm_rollout.model.load_plan import Lengths, LoadPlan, RequestClass
from vllm_rollout.model.load_result import LoadResult

HERE = Path(__file__).parent
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, CLIENT_CORE = {CORES[0]}, {CORES[-1]}
WARMUP_SECONDS = 2.0
TOKENS = 16
_MOST_WAITED, _MOST_STOLEN = 0.03, 0.02
_ATTEMPTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Percentiles in seconds of one kind of time; NaN where a tool does not give one."""

    p50: float = math.nan
    p95: float = math.nan
    p99: float = math.nan

    @classmethod
    def of(cls, seconds: Iterable[float | None]) -> "Figures":
        """Nearest-rank percentiles of those that are known."""
        ordered = sorted(each for each in seconds if each is not None)
        if not ordered:
            return cls()
        return cls(
            **{
                f"p{share}": ordered[math.ceil(len(ordered) * share / 100) - 1]
                for share in (50, 95, 99)
            }
        )

    def values(self) -> tuple[float, float, float]:
        """P50, P95, P99."""
        return self.p50, self.p95, self.p99

    def __str__(self) -> str:
        return " ".join(
            "      –  " if math.isnan(each) else f"{each * 1000:9.1f}" for each in self.values()
        )


class Server:
    """The benchmark's server, running."""

    def __init__(self, url: str, process: psutil.Process) -> None:
        self.url = url
        self._process = process

    @property
    def busy_seconds(self) -> float:
        """CPU seconds so far."""
        return float(sum(self._process.cpu_times()[:2]))

    @property
    def waited_seconds(self) -> float:
        """Seconds that others had its core while it could have run."""
        return waited_seconds(self._process.pid)

    def forget(self) -> None:
        """Restart its record."""
        request = urllib.request.Request(self.url + "/truth", method="DELETE")
        urllib.request.urlopen(request, timeout=30).close()

    def truth(self) -> dict[str, Any]:
        """Its record."""
        with urllib.request.urlopen(self.url + "/truth", timeout=120) as response:
            record: dict[str, Any] = json.load(response)
        return record


@contextmanager
def serving(**options: float) -> Iterator[Server]:
    """The benchmark's server on its core, with these options."""
    command = [sys.executable, str(HERE / "load_server.py")]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        os.sched_setaffinity(process.pid, SERVER_CORE)
        assert process.stdout is not None
        yield Server(process.stdout.readline().strip(), psutil.Process(process.pid))
        process.terminate()


def waited_seconds(pid: int) -> float:
    """How long a process has stood ready while others had its core: the machine's own noise."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteRun:
    """One load of the suite's, and the server's record of it.

    `zero` is the schedule's zero on the server's clock, `server_seconds` the CPU time the server
    took. `waited_share` is how long other processes kept its busiest worker from its core,
    `stolen_share` how much of all cores the hypervisor gave to other machines.
    """

    result: LoadResult
    truth: dict[str, Any]
    zero: float
    server_seconds: float
    waited_share: float
    stolen_share: float

    @property
    def disturbance(self) -> float:
        """How much of its time the machine did not give; more than 1 says nothing of the tool."""
        return max(self.waited_share / _MOST_WAITED, self.stolen_share / _MOST_STOLEN)

    @property
    def lag(self) -> Figures:
        """Schedule lag."""
        return Figures.of(r.lag_seconds for r in self.result.requests)


def suite(
    server: Server,
    *,
    rate: float,
    seconds: float,
    stream: bool,
    workers: int = 1,
    tokens: int = TOKENS,
    timeout_seconds: float = 30.0,
) -> SuiteRun:
    """Send an open-loop Poisson load by the suite, all measurements on, and read its result.

    Its workers share the client's core, or with more than one both cores.
    """
    lengths = Lengths(median=tokens, p95=tokens, longest=tokens)
    words = Lengths(median=32, p95=32, longest=32)
    plan = LoadPlan(
        base_url=server.url,
        model="llama-2-7b",
        rate_per_second=rate,
        duration_seconds=seconds,
        warmup_seconds=WARMUP_SECONDS,
        timeout_seconds=timeout_seconds,
        workers=workers,
        classes=(
            RequestClass(
                name="bench", kind="words", prompt_tokens=words, output=lengths, stream=stream
            ),
        ),
    )
    waits: dict[int, tuple[float, float]] = {}
    server.forget()
    stolen, busy, began = _stolen_seconds(), server.busy_seconds, time.monotonic()

    def look(_: LoadProgress) -> None:
        # Whoever reads the results along is no part of the generator.
        os.sched_setaffinity(0, SERVER_CORE)
        for child in psutil.Process().children(recursive=True):
            waited = waited_seconds(child.pid)
            waits[child.pid] = (waits.get(child.pid, (waited, 0))[0], waited)

    with tempfile.TemporaryDirectory() as folder:
        os.sched_setaffinity(0, CLIENT_CORE if workers == 1 else CORES)
        try:
            result = run_load(plan, work_dir=Path(folder), on_progress=look)
        finally:
            os.sched_setaffinity(0, CORES)
    waited = max((last - first for first, last in waits.values()), default=0.0)
    stolen, lasted = _stolen_seconds() - stolen, time.monotonic() - began
    return SuiteRun(
        result=result,
        server_seconds=server.busy_seconds - busy,
        truth=server.truth(),
        zero=(result.started_at or math.nan) - wall_less_monotonic(),
        waited_share=waited / (seconds + WARMUP_SECONDS),
        stolen_share=stolen / lasted / len(CORES),
    )


def undisturbed(make: Callable[[], SuiteRun]) -> SuiteRun:
    """The first of a few runs that the machine left alone; else the one it disturbed least.

    What is chosen by is known of the machine alone, not of what the run measured.
    """
    runs = [make()]
    while runs[-1].disturbance > 1 and len(runs) < _ATTEMPTS:
        runs.append(make())
    return min(runs, key=lambda run: run.disturbance)


def _stolen_seconds() -> float:
    return float(sum(times.steal for times in psutil.cpu_times(percpu=True)))


def noise() -> str:
    """The machine's load, to be printed beside figures."""
    return (
        f"load average {os.getloadavg()[0]:.1f} on {len(CORES)} cores at {time.strftime('%H:%M')}"
    )
