"""Client of a Prometheus server's HTTP API.

What it does not know it must not make up: an error, a warning that the answer is partial, or an
answer that cannot be read raises `UnreachableError`.
"""

import base64
import math
from collections.abc import Mapping, Sequence
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


class _Native(msgspec.Struct):
    """A sample of a native histogram: its buckets but the empty ones: (rule, from, to, count)."""

    count: str
    buckets: list[tuple[int, str, str, str]] = []

    @property
    def parsed(self) -> list[tuple[float, float, float]]:
        """Each bucket's edges and its count."""
        return [(float(low), float(high), float(n)) for _, low, high, n in self.buckets]


class _Entry(msgspec.Struct):
    """A series: of a range `values`, of a moment `value`; `histograms` where it is a native one."""

    metric: dict[str, str]
    values: list[tuple[float, str]] | None = None
    value: tuple[float, str] | None = None
    histograms: list[tuple[float, _Native]] | None = None


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
        token: bearer token, or the password of `username`; shown nowhere.
        token_file: file with it, read again for each question (such secrets are rotated).
        username: for basic authentication; without one the token is a bearer's.
        tenant: whose metrics are asked for, where several share a server (`X-Scope-OrgID`).
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
        username: str | None = None,
        tenant: str | None = None,
        ca_file: Path | None = None,
        timeout_seconds: float,
        transport: "Transport | None" = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._token, self._token_file = token, token_file
        self._username, self._tenant = username, tenant
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
            plain = [_series(e) for e in answer.data.result if e.histograms is None]
            return plain + _classic([e for e in answer.data.result if e.histograms is not None])
        except ValueError as error:
            raise self._error(f"its answer cannot be read: {error!r}") from error

    def _headers(self) -> dict[str, str]:
        secret = self._token
        if self._token_file is not None:
            try:
                secret = own_secret(self._token_file.read_text(encoding="utf-8").strip())
            except (OSError, ValueError) as error:
                what = "token" if self._username is None else "password"
                raise self._error(f"the {what} file {self._token_file}: {error}") from error
        headers = {"X-Scope-OrgID": self._tenant} if self._tenant else {}
        if self._username is not None:
            pair = f"{self._username}:{secret or ''}".encode()
            headers["Authorization"] = f"Basic {own_secret(base64.b64encode(pair).decode())}"
        elif secret:
            headers["Authorization"] = f"Bearer {secret}"
        return headers

    def _error(self, why: str) -> UnreachableError:
        return UnreachableError(
            f"Prometheus at {self.url} gave no answer: {shown(why)}",
            address=self.url,
            remedy="Check `prometheus` in the policy (url, token, password, ca_file).",
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


def _classic(entries: Sequence[_Entry]) -> list[Series]:
    """Native histograms as a classic one has them: a series of counts for each bound (`le`).

    Empty buckets are not in an answer, so every edge of any of them is a bound of a series, unless
    it lies inside a bucket of it: what is below is not known then.
    """
    samples = [
        (each, [(t, h.count, h.parsed) for t, h in each.histograms or ()]) for each in entries
    ]
    edges = {high for _, own in samples for _, _, buckets in own for _, high, _ in buckets}
    found = []
    for entry, own in samples:
        inside = {
            edge
            for edge in edges
            if any(low < edge < high for _, _, buckets in own for low, high, _ in buckets)
        }
        for edge in sorted(edges - inside - {math.inf}):
            below = [(t, sum(n for _, high, n in buckets if high <= edge)) for t, _, buckets in own]
            found.append(Series({**entry.metric, "le": str(edge)}, tuple(below)))
        every = [(t, float(count)) for t, count, _ in own]
        found.append(Series({**entry.metric, "le": "+Inf"}, tuple(every)))
    return found
