"""Recorded trace of requests: arrival times, and tokens in and out.

CSV with a header, or JSON lines. The columns are those of the Azure LLM inference traces
(`TIMESTAMP`, `ContextTokens`, `GeneratedTokens`) or `timestamp`, `prompt_tokens`,
`output_tokens`; timestamps are seconds, or dates and times.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.load_plan import TraceEntry

_COLUMNS = {
    "at": ("timestamp", "arrived_at"),
    "prompt_tokens": ("contexttokens", "prompt_tokens", "num_prefill_tokens"),
    "output_tokens": ("generatedtokens", "output_tokens", "num_decode_tokens"),
}
_MOST_ENTRIES = 1_000_000
_REMEDY = (
    "A trace has a line for each request with TIMESTAMP, ContextTokens and GeneratedTokens (CSV "
    "with these as its header), or timestamp, prompt_tokens and output_tokens (JSON lines)."
)


def read_trace(path: Path, *, speed: float = 1.0) -> tuple[TraceEntry, ...]:
    """The trace, from its first request on and in order of time, `speed` times as fast.

    Raises:
        UsageError: the file is no trace; the message names the line.
    """
    found = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, fields in _lines(file, path):
                found.append(_entry(fields, path, number))
                if len(found) > _MOST_ENTRIES:
                    raise UsageError(f"{path} has more than {_MOST_ENTRIES:,} requests")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", remedy=_REMEDY) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text", remedy=_REMEDY) from error
    if not found:
        raise UsageError(f"{path} holds no request", remedy=_REMEDY)
    found.sort(key=lambda entry: entry.at)
    zero = found[0].at
    return tuple(
        TraceEntry(
            at=(entry.at - zero) / speed,
            prompt_tokens=entry.prompt_tokens,
            output_tokens=entry.output_tokens,
        )
        for entry in found
    )


def _lines(file: Any, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each line's number and its fields, names in lower case."""
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(file)
        for row in reader:
            yield reader.line_num, {str(k).strip().lower(): v for k, v in row.items()}
        return
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                fields = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{path}:{number}: not JSON: {error}", remedy=_REMEDY) from error
            if not isinstance(fields, dict):
                raise UsageError(f"{path}:{number}: not a JSON object", remedy=_REMEDY)
            yield number, {str(k).lower(): v for k, v in fields.items()}


def _entry(fields: Mapping[str, Any], path: Path, number: int) -> TraceEntry:
    values = {}
    for name, columns in _COLUMNS.items():
        value = next((fields[column] for column in columns if fields.get(column) is not None), None)
        if value is None:
            raise UsageError(f"{path}:{number}: there is no {' or '.join(columns)}", remedy=_REMEDY)
        values[name] = value
    try:
        at = _seconds(values["at"])
        prompt, output = (_count(values[name]) for name in ("prompt_tokens", "output_tokens"))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path}:{number}: {error}", remedy=_REMEDY) from error
    return TraceEntry(at=at, prompt_tokens=prompt, output_tokens=output)


def _seconds(value: Any) -> float:
    try:
        seconds = float(value)
    except ValueError:
        # Azure's have seven digits after the point, which fromisoformat takes for no time.
        seconds = datetime.fromisoformat(str(value).strip()[:26]).timestamp()
    if not math.isfinite(seconds):
        raise ValueError(f"{value!r} is no time")
    return seconds


def _count(value: Any) -> int:
    number = int(str(value).strip())
    if number < 1:
        raise ValueError(f"{value!r} is no number of tokens above 0")
    return number
