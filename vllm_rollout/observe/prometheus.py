"""Client of a Prometheus server's HTTP API.

What it does not know it must not make up: an error, a warning that the answer is partial, or an
answer that cannot be read raises `UnreachableError`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vllm_rollout.http_client import HttpClient, HttpError
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.text import own_secret, shown

if TYPE_CHECKING:
    from vllm_rollout.http_client import Transport

_MAX_BYTES = 64 * 1024 * 1024


class _Entry(msgspec.Struct):
    """A series: of a range `values`, of a moment `value`."""

    metric: dict[str, str]
    values: list[tuple[float, str]] | None = None
    value: tuple[float, str] | None = None


class _Data(msgspec.Struct):
    result: list[_Entry]


class _Wire(msgspec.Struct):
    """An answer of the HTTP API."""

    status: str
    data: _Data | None = None
    error: Any = None
    warnings: Any = None


@dataclass(frozen=True, slots=True)
class Series:
    """One time series: its labels, and its samples (Unix time in seconds, value) by time.

    Samples that are no number (NaN, infinite) are left out: they say nothing.
    """

    labels: Mapping[str, str]
    samples: tuple[tuple[float, float], ...]


class Prometheus:
    """A client of one Prometheus. Close it in the end.

    Args:
        url: its address, without `/api/v1`.
        token: bearer token; shown nowhere.
        token_file: file with the token, read again for each question (such tokens are rotated).
        ca_file: certificates its own must come from.
        timeout_seconds: for each answer.
        transport: for tests.

    Raises:
        UnreachableError: `ca_file` cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        token_file: Path | None = None,
        ca_file: Path | None = None,
        timeout_seconds: float,
        transport: "Transport | None" = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._token, self._token_file = token, token_file
        self._timeout_seconds = timeout_seconds
        try:
            self._http = HttpClient(max_bytes=_MAX_BYTES, ca_file=ca_file, transport=transport)
        except OSError as error:  # an SSLError is one
            raise self._error(f"its CA file {ca_file} cannot be used: {error}") from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def at(self, promql: str, moment: datetime) -> list[Series]:
        """The answer to an instant query: each series with its one sample at `moment`.

        Raises:
            UnreachableError: no answer that can be relied on.
        """
        return self._asked("query", {"query": promql, "time": f"{moment.timestamp():.3f}"})

    def now(self) -> datetime:
        """The server's own time.

        Raises:
            UnreachableError: as `at`.
        """
        found = self._asked("query", {"query": "vector(time())"})
        if not found or not found[0].samples:
            raise self._error("it does not say what time it is")
        return datetime.fromtimestamp(found[0].samples[0][1], UTC)

    def scraped(self, selector: str, start: datetime, end: datetime) -> list[Series]:
        """Every sample in (`start`, `end`] as it was scraped, with its own time.

        Plain samples, because `rate` and `increase` extrapolate, and would make counts of requests
        that nobody sent.

        Raises:
            UnreachableError: as `at`.
        """
        if not end > start:
            raise ValueError(f"{end} is not after {start}")
        milliseconds = math.ceil((end - start) / timedelta(milliseconds=1))
        found = self.at(f"{selector}[{milliseconds}ms]", end)
        first = start.timestamp()  # which Prometheus 2 includes, and 3 does not
        return [
            Series(each.labels, tuple(sample for sample in each.samples if sample[0] > first))
            for each in found
        ]

    def over(self, promql: str, start: datetime, end: datetime, *, step: timedelta) -> list[Series]:
        """The answer to a range query, one sample every `step`.

        Raises:
            UnreachableError: as `at`.
        """
        return self._asked(
            "query_range",
            {
                "query": promql,
                "start": f"{start.timestamp():.3f}",
                "end": f"{end.timestamp():.3f}",
                "step": f"{step.total_seconds():.3f}",
            },
        )

    def _asked(self, path: str, question: Mapping[str, str]) -> list[Series]:
        try:
            response = self._http.request(
                "POST",
                f"{self.url}/api/v1/{path}",
                data=dict(question),
                headers=self._headers(),
                timeout_seconds=self._timeout_seconds,
            )
            answer = response.json(_Wire)
        except HttpError as error:
            raise self._error(error.reason) from error
        if answer.status != "success":
            raise self._error(f"HTTP {response.status}: {answer.error}")
        if answer.warnings:
            raise self._error(f"the answer may be partial: {answer.warnings}")
        if answer.data is None:
            raise self._error("its answer has no data")
        try:
            return [_series(entry) for entry in answer.data.result]
        except ValueError as error:
            raise self._error(f"its answer cannot be read: {error!r}") from error

    def _headers(self) -> dict[str, str]:
        token = self._token
        if self._token_file is not None:
            try:
                token = own_secret(self._token_file.read_text(encoding="utf-8").strip())
            except (OSError, ValueError) as error:
                raise self._error(f"the token file {self._token_file}: {error}") from error
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _error(self, why: str) -> UnreachableError:
        return UnreachableError(
            f"Prometheus at {self.url} gave no answer: {shown(why)}",
            address=self.url,
            remedy="Check `prometheus` in the policy (url, token_env, ca_file) and the server.",
        )


def quoted(value: str) -> str:
    """`value` as a PromQL string."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def selector(
    metric: str, labels: Mapping[str, str], matching: Mapping[str, str] | None = None
) -> str:
    """`metric` with labels of exactly these values, and others that match a regular expression.

    The names go in as they are: the policy has checked them.
    """
    exact = [f"{name}={quoted(value)}" for name, value in labels.items()]
    patterns = [f"{name}=~{quoted(value)}" for name, value in (matching or {}).items()]
    return f"{metric}{{{','.join(exact + patterns)}}}"


def _series(entry: _Entry) -> Series:
    pairs = entry.values if entry.value is None else [entry.value]
    if pairs is None:
        raise ValueError("a series without samples")
    samples = [(time, float(value)) for time, value in pairs]
    return Series(
        labels=entry.metric,
        samples=tuple((t, v) for t, v in samples if math.isfinite(t) and math.isfinite(v)),
    )
