"""What the load benchmarks share: the server, the suite and other tools, each on a core of its own.

The server has the first core, the tool under test the last. Peers that are not Locust are looked
for on PATH and in the folder that the environment variable LOAD_PEERS names (a virtual environment
`guidellm/` made with `pip install guidellm`); one that is missing is named and left out.
"""

import csv
import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from vllm_rollout.observe.load import LoadResult
from vllm_rollout.observe.load_plan import Lengths, LoadPlan, RequestClass
from vllm_rollout.observe.load_run import LoadProgress, run_load

HERE = Path(__file__).parent
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, CLIENT_CORE = {CORES[0]}, {CORES[-1]}
WARMUP_SECONDS = 2.0
TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Percentiles in seconds of one kind of time; NaN where a tool does not give one."""

    p50: float = math.nan
    p95: float = math.nan
    p99: float = math.nan

    @classmethod
    def of(cls, seconds: Iterable[float]) -> "Figures":
        """Nearest-rank percentiles."""
        ordered = sorted(seconds)
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
        """Begin its record anew."""
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
    """One load of the suite's, and how long others kept its busiest worker from its core."""

    result: LoadResult
    waited_share: float

    @property
    def lag(self) -> Figures:
        """Schedule lag."""
        return Figures.of(r.lag_seconds for r in self.result.requests if not math.isnan(r.sent))


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
    return SuiteRun(result=result, waited_share=waited / (seconds + WARMUP_SECONDS))


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRun:
    """What another tool reports: requests per second, and latency and TTFT as it reckons them."""

    rate: float
    latency: Figures = dataclasses.field(default_factory=Figures)
    ttft: Figures = dataclasses.field(default_factory=Figures)


def locust_users(
    kind: str, server: Server, *, users: int, seconds: float, stream: bool, rate: float = 0.0
) -> ToolRun:
    """Locust's own `FastHttp` or `Http` users and the table that Locust makes of them."""
    environment = os.environ | {
        "LOAD_STREAM": "1" if stream else "0",
        "LOAD_RATE_PER_USER": str(rate / users),
        "LOAD_TOKENS": str(TOKENS),
    }
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "load_users.py"), kind]
    command += ["--headless", "--host", server.url, "-u", str(users), "-r", str(users)]
    command += ["-t", f"{math.ceil(seconds + WARMUP_SECONDS)}s", "--only-summary", "--reset-stats"]
    with tempfile.TemporaryDirectory() as folder:
        _run([*command, "--csv", f"{folder}/it"], env=environment)
        with Path(folder, "it_stats.csv").open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["Name"] == "Aggregated"]
    row = rows[0]
    return ToolRun(
        rate=float(row["Requests/s"]),
        latency=Figures(
            # It says N/A where it sent nothing.
            **{f"p{p}": float(row[f"{p}%"].replace("N/A", "nan")) / 1000 for p in (50, 95, 99)}
        ),
    )


def bare(server: Server, *, clients: int, seconds: float) -> ToolRun:
    """A bare geventhttpclient loop."""
    command = [sys.executable, str(HERE / "load_bare.py"), server.url]
    out = _run([*command, "--clients", str(clients), "--seconds", str(seconds)])
    return ToolRun(rate=float(out.split()[-1]))


def wrk(server: Server, *, clients: int, seconds: float) -> ToolRun | None:
    """`wrk` with one thread."""
    if (program := shutil.which("wrk")) is None:
        return None
    body = json.dumps({"model": "llama-2-7b", "prompt": "The sea", "max_tokens": TOKENS})
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method='POST'\nwrk.body='{body}'\n")
        script.write("wrk.headers['Content-Type']='application/json'\n")
        script.flush()
        command = [program, "-t1", f"-c{clients}", f"-d{math.ceil(seconds)}s", "-s", script.name]
        out = _run([*command, server.url + "/v1/completions"])
    found = re.search(r"Requests/sec:\s*([\d.]+)", out)
    return ToolRun(rate=float(found[1])) if found else None


def guidellm(server: Server, *, rate: float, seconds: float) -> ToolRun | str:
    """GuideLLM at a constant rate, streaming; or why there are no figures of it.

    Its 0.3 series: later ones cannot be had without PyTorch.
    """
    peers = os.environ.get("LOAD_PEERS", str(Path.home() / ".cache/vllm-rollout/peers"))
    beside = Path(peers, "guidellm", "bin", "guidellm")
    program = str(beside) if beside.exists() else shutil.which("guidellm")
    if program is None:
        return "not installed (pip install guidellm==0.3.1)"
    with tempfile.TemporaryDirectory() as folder:
        prompts, report = Path(folder, "prompts.jsonl"), Path(folder, "report.json")
        row = {"prompt": "The sea is wide and the wind moves over it", "tokens": TOKENS}
        prompts.write_text((json.dumps(row) + "\n") * 2000)
        columns = {"prompt_column": "prompt", "output_tokens_count_column": "tokens"}
        command = [program, "benchmark", "run", "--target", server.url, "--model", "llama-2-7b"]
        command += ["--rate-type", "constant", "--rate", str(rate), "--max-seconds", str(seconds)]
        command += ["--data", str(prompts), "--data-args", json.dumps(columns)]
        command += ["--disable-progress", "--disable-console-outputs"]
        try:
            _run([*command, "--output-path", str(report)], env=os.environ | {"HF_HUB_OFFLINE": "1"})
            found = json.loads(report.read_text())["benchmarks"][0]["metrics"]
        except (OSError, RuntimeError, subprocess.TimeoutExpired, KeyError, IndexError) as error:
            return f"gave no report ({type(error).__name__})"
    return ToolRun(
        rate=found["requests_per_second"]["successful"]["mean"],
        latency=_guidellm_figures(found["request_latency"]["successful"], unit=1.0),
        ttft=_guidellm_figures(found["time_to_first_token_ms"]["successful"], unit=0.001),
    )


def _guidellm_figures(found: dict[str, Any], *, unit: float) -> Figures:
    percentiles = found["percentiles"]
    return Figures(**{f"p{p}": percentiles[f"p{p}"] * unit for p in (50, 95, 99)})


def _run(command: Sequence[str], env: dict[str, str] | None = None) -> str:
    """Run a tool on the client's core; what it printed."""
    os.sched_setaffinity(0, CLIENT_CORE)
    try:
        done = subprocess.run(
            command, check=False, env=env, capture_output=True, text=True, timeout=600
        )
    finally:
        os.sched_setaffinity(0, CORES)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def noise() -> str:
    """The machine's load, to be printed beside figures."""
    return (
        f"load average {os.getloadavg()[0]:.1f} on {len(CORES)} cores at {time.strftime('%H:%M')}"
    )
