"""How late the simulator's tokens are under many streams, as it says itself and as a client sees.

Opens `--streams` streams evenly over `--opening` seconds, each of `--rate` tokens per second, and
holds them for `--seconds`. The server has one core, the client (this process) another. A token's
lateness at the client is its arrival minus its place in the schedule: the server's recorded time
of receipt, plus time to first token, plus the gaps before it; both read one monotonic clock.
Lateness is reported over the time when all streams run.
"""

import argparse
import asyncio
import json
import math
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import psutil
import uvloop

from vllm_rollout.simulator.running import RunningSimulator

_TTFT_SECONDS = 0.1


class Stream(asyncio.Protocol):
    """One request and the times at which its tokens arrived."""

    def __init__(self, request_id: str, tokens: int) -> None:
        self.request_id = request_id
        self.arrivals: list[float] = []
        self.closed = asyncio.get_running_loop().create_future()
        self._tokens = tokens

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        body = json.dumps({"prompt": "Hello", "max_tokens": self._tokens, "stream": True})
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"X-Request-Id: {self.request_id}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        cast("asyncio.Transport", transport).write((head + body).encode())

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.arrivals += [now] * data.count(b'data: {"id"')

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - given by asyncio
        self.closed.set_result(None)


def percentiles(name: str, seconds: Sequence[float]) -> str:
    """One line of nearest-rank percentiles in milliseconds."""
    ordered = sorted(seconds)
    parts = [f"{name:<28} n={len(ordered):<8}"]
    for share in (0.5, 0.95, 0.99, 1.0):
        value = ordered[math.ceil(len(ordered) * share) - 1] * 1000
        parts.append(f"{'max' if share == 1 else f'P{share * 100:.0f}'} {value:.2f} ms  ")
    return "".join(parts)


def waited_seconds(pid: int) -> float:
    """How long the process has stood ready while others had its core: the machine's own noise."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


async def drive(url: str, arguments: argparse.Namespace) -> list[Stream]:
    """Open the streams and wait until they have ended."""
    loop = asyncio.get_running_loop()
    host, _, port = url.removeprefix("http://").rpartition(":")
    begin = loop.time()
    streams = []
    for number in range(arguments.streams):
        due = begin + arguments.opening * number / arguments.streams
        await asyncio.sleep(max(0.0, due - loop.time()))
        # All end together, so that the number of streams stays constant while it is measured.
        remaining = arguments.opening + arguments.seconds - (due - begin) - _TTFT_SECONDS
        tokens = max(1, round(remaining * arguments.rate))
        factory = partial(Stream, f"stream-{number}", tokens)
        streams.append((await loop.create_connection(factory, host, int(port)))[1])
    await asyncio.wait_for(
        asyncio.gather(*(stream.closed for stream in streams)), arguments.seconds + 30
    )
    return streams


async def measure(simulator: RunningSimulator, arguments: argparse.Namespace) -> None:
    """Run the streams; print what the server and the client saw."""
    process = psutil.Process(simulator.pid)
    running = asyncio.create_task(drive(simulator.url, arguments))
    await asyncio.sleep(arguments.opening + 1)
    await asyncio.to_thread(simulator.request, "DELETE", "/simulator/lateness")
    steady_from, busy_from = time.monotonic(), sum(process.cpu_times()[:2])
    own_from, waited_from = time.process_time(), waited_seconds(simulator.pid)
    await asyncio.sleep(arguments.seconds - 2)
    steady = time.monotonic() - steady_from
    server = await asyncio.to_thread(simulator.request, "GET", "/simulator/lateness")
    busy, own = sum(process.cpu_times()[:2]) - busy_from, time.process_time() - own_from
    waited = waited_seconds(simulator.pid) - waited_from
    streams = await running

    received = {
        one["id"].removeprefix("cmpl-"): one["received"] for one in simulator.truth()["requests"]
    }
    late = [
        arrival - (received[stream.request_id] + _TTFT_SECONDS + number / arguments.rate)
        for stream in streams
        for number, arrival in enumerate(stream.arrivals)
        if steady_from <= arrival <= steady_from + steady
    ]
    print(
        f"{arguments.streams} streams of {arguments.rate:g} tokens/s for {steady:.1f} s: "
        f"{len(late) / steady:,.0f} tokens/s, server CPU {busy / steady:.0%} of one core, "
        f"client CPU {own / steady:.0%}; others kept the server waiting for its core "
        f"{waited / steady:.1%} of the time"
    )
    for name in ("tokens", "loop"):
        seen = {key: value for key, value in server[name].items() if value is not None}
        shown = "  ".join(
            f"{key.removesuffix('_seconds').upper()} {value * 1000:.2f} ms"
            for key, value in seen.items()
            if key != "count"
        )
        print(f"{'server, ' + name:<28} n={seen['count']:<8}{shown}")
    print(percentiles("client, tokens", late))


def main() -> None:
    """Parse the command line, pin the processes and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=10.0, help="tokens per second and stream")
    parser.add_argument("--opening", type=float, default=5.0, help="seconds to open all streams")
    parser.add_argument("--seconds", type=float, default=15.0, help="seconds all streams run")
    arguments = parser.parse_args()
    options = {
        "max_num_seqs": arguments.streams,
        "ttft_seconds": _TTFT_SECONDS,
        "inter_token_seconds": 1 / arguments.rate,
    }
    with RunningSimulator(**options) as simulator:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(simulator.pid, {cores[0]})
        os.sched_setaffinity(0, {cores[-1]})
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(measure(simulator, arguments))


if __name__ == "__main__":
    main()
