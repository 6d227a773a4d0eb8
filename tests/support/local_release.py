"""A release on a real local platform, in the words of its tests."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil

from vllm_rollout.model.deployment import Deployment, Revision, Target
from vllm_rollout.platform.local import LocalPlatform, processes
from vllm_rollout.platform.local.processes import Identity
from vllm_rollout.platform.local.state import ReplicaRow

TINY_SERVER = Path(__file__).parents[1] / "platform" / "local" / "tiny_server.py"


def tiny(build: str = "a", *options: str, **others: Any) -> dict[str, Any]:
    """Values that run the tiny server: `tiny("b", "--crash", secrets=[…])`."""
    command = ["{python}", str(TINY_SERVER), "--port", "{port}", "--model", "{model}"]
    return {"command": [*command, "--build", build, *options], **others}


def until(holds: Callable[[], bool], *, within_seconds: float = 30.0) -> None:
    """Wait for something that must come to hold."""
    deadline = time.monotonic() + within_seconds
    while not holds():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.05)


@dataclass
class LocalRelease:
    """One deployment on one local platform."""

    platform: LocalPlatform
    deployment: Deployment

    @property
    def key(self) -> str:
        """The release's name in the state file."""
        return f"{self.deployment.namespace}.{self.deployment.release}"

    @property
    def url(self) -> str:
        """The router's URL."""
        return self.platform.base_url(self.deployment)

    @property
    def rows(self) -> list[ReplicaRow]:
        """All replicas, those that are leaving as well."""
        return self.platform._state.replicas(self.key)

    @property
    def router(self) -> Identity | None:
        """The router, if it runs."""
        return self.platform._routers.running(self.key)

    @property
    def statuses(self) -> list[str]:
        """The status of each revision."""
        return [str(each.status) for each in self.platform.history(self.deployment)]

    def target(self, values: dict[str, Any], replicas: int = 1, capacity: int = 1) -> Target:
        """A target made of `values`."""
        build = self.platform.build(self.deployment, values)
        return Target(build=build, values=values, replicas=replicas, capacity=capacity)

    def apply(
        self,
        values: dict[str, Any],
        replicas: int = 1,
        capacity: int = 1,
        *,
        within_seconds: float = 40.0,
    ) -> Revision:
        """Apply `values` to `replicas` of `capacity`."""
        return self.platform.apply(
            self.deployment,
            self.target(values, replicas, capacity),
            description="test",
            timeout=timedelta(seconds=within_seconds),
        )

    def pids(self) -> set[int]:
        """Process ids of the replicas that are not leaving."""
        rows = [row for row in self.rows if row.phase != "Terminating" and row.process]
        return {row.process.pid for row in rows if row.process}

    def variables(self, *names: str) -> set[tuple[str | None, ...]]:
        """Variables of the environment of each replica that is not leaving."""
        environments = [psutil.Process(pid).environ() for pid in self.pids()]
        return {tuple(map(each.get, names)) for each in environments}

    def carried(self) -> list[psutil.Process]:
        """Every process of every replica there is a row of."""
        return [each for row in self.rows for each in processes.carrying(row.id)]

    def served(self, requests: int) -> Counter[str]:
        """How many of `requests`, sent one after another, each build answered."""
        with httpx.Client() as client:
            answers = [
                client.post(f"{self.url}/v1/completions", json={}).raise_for_status().json()
                for _ in range(requests)
            ]
        assert {answer["model"] for answer in answers} == {self.deployment.model}
        return Counter(answer["build"] for answer in answers)

    @contextmanager
    def clients(self) -> Iterator[list[str]]:
        """Two clients that ask all the time; yields what went wrong for them."""
        wrong: list[str] = []
        done = threading.Event()
        url = f"{self.url}/v1/completions"

        def ask() -> None:
            with httpx.Client() as client:
                while not done.is_set():
                    try:
                        client.post(url, json={}).raise_for_status()
                    except httpx.HTTPError as error:
                        wrong.append(repr(error))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            yield wrong
        finally:
            done.set()
            for thread in threads:
                thread.join()
