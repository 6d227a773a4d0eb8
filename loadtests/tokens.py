"""A page of Locust's web UI for what its own tables have no column for: times of tokens.

Percentiles are those of HDR histograms (3 significant digits), which the workers send to the master
and which add up exactly; Locust's own table rounds to two digits.
"""

import json
import math
import time
from typing import Any

from hdrh.histogram import HdrHistogram
from locust.runners import MasterRunner

from vllm_rollout.model.load_result import RequestRecord

_KEY = "tokens"
_KINDS = ("latency", "ttft", "itl")
_PERCENTILES = (50, 95, 99)
_LONGEST_MICROSECONDS = 3600 * 1_000_000
_COLUMNS = {
    "name": "Requests",
    "answers": "Answers",
    **{f"latency_{p}": f"Latency P{p} ms" for p in _PERCENTILES},
    **{f"ttft_{p}": f"TTFT P{p} ms" for p in _PERCENTILES},
    **{f"itl_{p}": f"Inter-token P{p} ms" for p in _PERCENTILES},
    "speed": "Tokens/s",
}


class _Sum:
    """The answers to requests of one name."""

    def __init__(self) -> None:
        self.times = {kind: HdrHistogram(1, _LONGEST_MICROSECONDS, 3) for kind in _KINDS}
        self.tokens = 0

    def row(self, name: str, seconds: float) -> dict[str, object]:
        """Return the page's row; times in milliseconds."""
        row: dict[str, object] = {"name": name, "answers": self.times["latency"].get_total_count()}
        for kind, histogram in self.times.items():
            some = histogram.get_total_count() > 0
            for p in _PERCENTILES:
                value = histogram.get_value_at_percentile(p) / 1000 if some else None
                row[f"{kind}_{p}"] = value
        row["speed"] = round(self.tokens / seconds, 1)
        return row


class TokensPage:
    """Sums up answers, in each of Locust's processes, and shows them where the web UI is."""

    def __init__(self, environment: Any, runner: Any) -> None:
        self._sums: dict[str, _Sum] = {}
        self._since = time.monotonic()
        self._until = math.inf
        events = environment.events
        events.test_start.add_listener(self._begin)
        events.test_stop.add_listener(self._end)
        events.reset_stats.add_listener(self._begin)
        events.report_to_master.add_listener(self._report)
        if isinstance(runner, MasterRunner):
            events.worker_report.add_listener(self._take)
        if environment.web_ui:
            self._attach(environment.web_ui)

    def add(self, name: str, record: RequestRecord) -> None:
        """Count an answer."""
        if not record.ok:
            return
        found = self._sums.setdefault(name, _Sum())
        found.tokens += record.completion_tokens
        times = {"latency": record.latency_seconds, "ttft": record.ttft_seconds}
        if record.completion_tokens > 1:
            times["itl"] = record.itl_seconds
        for kind, seconds in times.items():
            if seconds is None:
                continue
            micros = min(max(1, round(seconds * 1_000_000)), _LONGEST_MICROSECONDS)
            found.times[kind].record_value(micros)

    def rows(self) -> list[dict[str, object]]:
        """A row for each name of requests."""
        seconds = max(1e-9, min(time.monotonic(), self._until) - self._since)
        return [found.row(name, seconds) for name, found in sorted(self._sums.items())]

    def _begin(self, **_: Any) -> None:
        self._sums.clear()
        self._since, self._until = time.monotonic(), math.inf

    def _end(self, **_: Any) -> None:
        self._until = time.monotonic()

    def _report(self, data: dict[str, Any], **_: Any) -> None:
        data[_KEY] = {
            name: [found.tokens, *(found.times[kind].encode().decode() for kind in _KINDS)]
            for name, found in self._sums.items()
        }
        self._sums.clear()

    def _take(self, data: dict[str, Any], **_: Any) -> None:
        for name, (tokens, *histograms) in data.get(_KEY, {}).items():
            found = self._sums.setdefault(name, _Sum())
            found.tokens += tokens
            for kind, encoded in zip(_KINDS, histograms, strict=True):
                found.times[kind].decode_and_add(encoded.encode())

    def _attach(self, web_ui: Any) -> None:
        structure = [{"key": key, "title": title} for key, title in _COLUMNS.items()]
        web_ui.template_args |= {
            "extended_tabs": [{"title": "Tokens", "key": _KEY}],
            "extended_tables": [{"key": _KEY, "structure": structure}],
        }

        @web_ui.app.after_request  # type: ignore[untyped-decorator]
        def extend(response: Any) -> Any:
            from flask import request

            if request.path == "/stats/requests" and response.is_json:
                page = {"key": _KEY, "data": self.rows()}
                response.set_data(json.dumps({**response.json, "extended_stats": [page]}))
            return response
