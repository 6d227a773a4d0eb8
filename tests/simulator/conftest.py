"""Simulators to talk to, recordings to hold them against, and a clock that only tests move."""

import heapq
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from vllm_rollout.simulator import engine, timetable
from vllm_rollout.simulator.dials import Dials
from vllm_rollout.simulator.running import RunningSimulator

RECORDINGS = Path(__file__).parents[1] / "data" / "vllm-0.32.0"
FAST: dict[str, Any] = {"ttft_seconds": 0, "inter_token_seconds": 0, "max_model_len": 256}


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of recordings."""
    return RECORDINGS


@pytest.fixture(scope="session")
def _shared_simulator() -> Iterator[RunningSimulator]:
    with RunningSimulator(**FAST) as running:
        yield running


@pytest.fixture
def simulator(_shared_simulator: RunningSimulator) -> RunningSimulator:
    """A simulator that answers at once, its dials and records as new."""
    _shared_simulator.turn(**{**Dials().model_dump(), **FAST})
    _shared_simulator.request("DELETE", "/simulator/truth")
    return _shared_simulator


@pytest.fixture
def client(simulator: RunningSimulator) -> Iterator[httpx.Client]:
    """An HTTP client of `simulator`."""
    with httpx.Client(base_url=simulator.url, timeout=20) as http:
        yield http


def samples(text: str) -> dict[str, float]:
    """Every sample of a `/metrics` page by `name{label="value",…}`."""
    return {
        sample.name
        + "{"
        + ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
        + "}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="session")
def read_samples() -> Callable[[str], dict[str, float]]:
    """The function `samples`."""
    return samples


class ManualLoop:
    """The few loop functions that a timetable uses, on a clock that only `advance` moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._calls: list[tuple[float, int, list[Any]]] = []
        self._order = count()

    def call_later(self, delay: float, callback: Callable[..., None], *args: Any) -> Any:
        entry = (self.now + delay, next(self._order), [callback, args])
        heapq.heappush(self._calls, entry)
        return SimpleNamespace(cancel=entry[2].clear)

    def call_soon(self, callback: Callable[..., None], *args: Any) -> Any:
        return self.call_later(0, callback, *args)

    def advance(self, seconds: float) -> None:
        """Let time pass and call what is due, each at its time."""
        end = self.now + seconds
        while self._calls and self._calls[0][0] <= end:
            due, _, call = heapq.heappop(self._calls)
            self.now = max(self.now, due)
            if call:
                call[0](*call[1])
        self.now = end


@pytest.fixture
def manual_loop(monkeypatch: pytest.MonkeyPatch) -> ManualLoop:
    """A loop whose clock is also the timetable's and the engine's."""
    loop = ManualLoop()
    clock = SimpleNamespace(monotonic=lambda: loop.now)
    monkeypatch.setattr(timetable, "time", clock)
    monkeypatch.setattr(engine, "time", clock)
    return loop
