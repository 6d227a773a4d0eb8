"""Prometheus as a test scripts it: what it answers, and samples of one server around `NOW`."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx

from vllm_rollout.observe.prometheus import Prometheus, Series

NOW = datetime(2026, 11, 18, 10, 0, tzinfo=UTC)
T = NOW.timestamp()
TARGET = {"job": "vllm", "instance": "10.0.0.1:8000"}


def client(answer: Callable[[httpx.Request], httpx.Response], **options: Any) -> Prometheus:
    """A client of a Prometheus that answers so."""

    def streamed(request: httpx.Request) -> httpx.Response:
        whole = answer(request)
        return httpx.Response(
            whole.status_code, headers=whole.headers, stream=httpx.ByteStream(whole.content)
        )

    transport = httpx.MockTransport(streamed)
    return Prometheus("http://prometheus", timeout_seconds=1, transport=transport, **options)


def results(*series: Series) -> dict[str, Any]:
    """The body of an answer that is these series."""
    result = [
        {"metric": dict(s.labels), "values": [[t, str(v)] for t, v in s.samples]} for s in series
    ]
    return {"status": "success", "data": {"resultType": "matrix", "result": result}}


def samples(*values: float | None, every: float = 15, start: float = T - 60) -> Any:
    """One sample every 15 s from a minute before now; None where there is none."""
    return tuple((start + i * every, v) for i, v in enumerate(values) if v is not None)
