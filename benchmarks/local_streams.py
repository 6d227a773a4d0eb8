"""What becomes of streams on the local platform while what serves them changes, dies or is full.

    python benchmarks/local_streams.py [--rate 50] [--seconds 2] [--drain 0.5]

Two simulators behind a router stream answers of `--seconds` each, to clients that begin `--rate` of
them a second; each row does one thing to the release meanwhile. A stream is whole when all of its
tokens came; it is refused by 503, has failed by 502 or without a connection, or is cut. The gap is
the longest time between two tokens of a stream that was whole (they are sent every 50 ms).
"""

import argparse
import asyncio
import json
import resource
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import aiohttp
import psutil

from vllm_rollout.model.deployment import Deployment, Target
from vllm_rollout.platform.local import LocalPlatform

DEPLOYMENT = Deployment("llama-2-7b", "production")
LONG = timedelta(minutes=2)
DESCRIPTORS, AT_ONCE = 1024, 700
_TOKEN_SECONDS = 0.05
_AROUND_SECONDS = 1.0


@dataclass
class Outcomes:
    """How the streams of one row ended."""

    ends: Counter[str] = field(default_factory=Counter)
    longest_gap: float = 0.0

    async def stream(self, session: aiohttp.ClientSession, url: str, tokens: int) -> None:
        """Ask for one stream and note how it ends."""
        loop = asyncio.get_running_loop()
        body = {"model": DEPLOYMENT.model, "prompt": "Hello", "max_tokens": tokens, "stream": True}
        came, gap = 0, 0.0
        try:
            async with session.post(f"{url}/v1/completions", json=body) as answer:
                if answer.status != 200:
                    self.ends["refused" if answer.status == 503 else "failed"] += 1
                    return
                last = loop.time()
                async for line in answer.content:
                    if line.startswith(b"data: {") and json.loads(line[6:])["choices"]:
                        came += 1
                        gap, last = max(gap, loop.time() - last) if came > 1 else gap, loop.time()
        except aiohttp.ClientError:
            self.ends["cut" if came else "failed"] += 1
            return
        whole = came >= tokens
        self.ends["whole" if whole else "cut"] += 1
        if whole:
            self.longest_gap = max(self.longest_gap, gap)


class Bench:
    """One release, and what is done to it."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self._folder, self._arguments = folder, arguments
        self._platform = self._of(timedelta(minutes=1))

    def _of(self, drain: timedelta) -> LocalPlatform:
        return LocalPlatform(self._folder, startup_timeout=LONG, max_restarts=5, drain=drain)

    def deploy(self, version: str, *, drain: timedelta = timedelta(minutes=1)) -> None:
        """Bring both replicas to a build."""
        serve = (
            "{python} -m vllm_rollout.simulator --port {port} --model {model} --ttft-seconds 0.1"
        )
        command = [*serve.split(), "--inter-token-seconds", str(_TOKEN_SECONDS)]
        values = {
            "command": [*command, "--max-num-seqs", "2000"],
            "model_revision": version,
        }
        platform = self._of(drain)
        build = platform.build(DEPLOYMENT, values)
        target = Target(build=build, values=values, replicas=2, capacity=2)
        platform.apply(DEPLOYMENT, target, description=version, timeout=LONG)

    def roll_back(self) -> None:
        """Return to the first revision."""
        self._platform.rollback(DEPLOYMENT, 1, description="back", timeout=LONG)

    def kill_replica(self) -> None:
        """End one of the two, and wait for its successor."""
        listener(self._platform.replicas(DEPLOYMENT)[0].address).kill()
        self._until_ready()

    def kill_replica_while_locked(self) -> None:
        """The same, while another program holds the state file for 5 seconds."""
        path = self._folder / "state.db"
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
            other.execute("BEGIN EXCLUSIVE")
            time.sleep(1)
            listener(self._platform.replicas(DEPLOYMENT)[0].address).kill()
            time.sleep(4)
        self._until_ready()

    def kill_router(self) -> None:
        """End the process that serves."""
        listener(self.url).kill()
        time.sleep(3)
        self._until_ready()

    def cut(self) -> None:
        """Swap builds with a drain shorter than a stream."""
        self.deploy("cut", drain=timedelta(seconds=self._arguments.drain))

    def limit(self) -> None:
        """Let the router have few descriptors."""
        serving = listener(self.url).pid
        resource.prlimit(serving, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))

    def stop(self) -> None:
        """End everything."""
        self._platform.stop_all()

    @property
    def url(self) -> str:
        """Where the release is served."""
        return self._platform.base_url(DEPLOYMENT)

    def _until_ready(self) -> None:
        while not all(each.ready for each in self._platform.replicas(DEPLOYMENT)):
            time.sleep(0.1)


def listener(url: str) -> psutil.Process:
    """Return the process that listens at this address."""
    port = int(url.rpartition(":")[2])
    return next(
        psutil.Process(each.pid)
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr[1:] == (port,)
    )


async def during(bench: Bench, act: Callable[[], None], arguments: argparse.Namespace) -> Outcomes:
    """Begin streams at a steady rate while `act` runs and for a second around it."""
    found, streams, done = Outcomes(), [], asyncio.Event()
    loop, url = asyncio.get_running_loop(), bench.url
    tokens = max(2, round(arguments.seconds / _TOKEN_SECONDS))

    async def acting() -> None:
        await asyncio.sleep(_AROUND_SECONDS)
        await asyncio.to_thread(act)
        await asyncio.sleep(_AROUND_SECONDS)
        done.set()

    acts = asyncio.create_task(acting())
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        due = loop.time()
        while not done.is_set():
            streams.append(asyncio.create_task(found.stream(session, url, tokens)))
            due += 1 / arguments.rate
            await asyncio.sleep(max(0.0, due - loop.time()))
        await asyncio.gather(acts, *streams)
    return found


async def at_once(bench: Bench, arguments: argparse.Namespace) -> Outcomes:
    """Begin many streams at the same time."""
    found = Outcomes()
    tokens = max(2, round(arguments.seconds / _TOKEN_SECONDS))
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(found.stream(session, bench.url, tokens) for _ in range(AT_ONCE)))
    return found


def main() -> None:
    """Do each thing once, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=float, default=50.0, help="streams begun per second")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a stream")
    parser.add_argument("--drain", type=float, default=0.5, help="of the row in which it cuts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments)
        try:
            bench.deploy("one")
            rows: tuple[tuple[str, Callable[[], None]], ...] = (
                ("nothing, for comparison", lambda: None),
                ("promotion", lambda: bench.deploy("two")),
                ("rollback", bench.roll_back),
                ("a replica is killed", bench.kill_replica),
                ("the same, state file locked for 5 s", bench.kill_replica_while_locked),
                ("the router is killed", bench.kill_router),
                (f"promotion, drain of {arguments.drain:g} s", bench.cut),
            )
            columns = ("whole", "refused", "failed", "cut")
            sys.stdout.write("| | streams | " + " | ".join(columns) + " | longest gap |\n")
            sys.stdout.write("|---" * 7 + "|\n")
            for name, act in rows:
                write(name, asyncio.run(during(bench, act, arguments)), columns)
            bench.limit()
            name = f"{AT_ONCE} at once, {DESCRIPTORS:,} descriptors"
            write(name, asyncio.run(at_once(bench, arguments)), columns)
            after = asyncio.run(during(bench, lambda: None, arguments))
            write("nothing, after all that", after, columns)
        finally:
            bench.stop()


def write(name: str, found: Outcomes, columns: tuple[str, ...]) -> None:
    """Write one row."""
    counts = " | ".join(f"{found.ends[column]:,}" for column in columns)
    gap = f"{found.longest_gap * 1000:.0f} ms"
    sys.stdout.write(f"| {name} | {found.ends.total():,} | {counts} | {gap} |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
