"""A figure in words: value with unit, bounds and limit, source and age, or why it is unknown."""

import math
from collections.abc import Mapping
from datetime import datetime, timedelta

from vllm_rollout.model.live_figures import Figure, FigureName
from vllm_rollout.model.text import shown
from vllm_rollout.model.units import format_duration
from vllm_rollout.policy import Policy
from vllm_rollout.report.formatting import NONE

Limits = Mapping[FigureName, float]

LABELS: Mapping[FigureName, tuple[str, str]] = {
    FigureName.READY: ("ready", "replicas"),
    FigureName.RESTARTS: ("restarts", ""),
    FigureName.REQUEST_RATE: ("requests", "requests/s"),
    FigureName.ERROR_RATE: ("error rate", "ratio"),
    FigureName.LATENCY_P50: ("P50 latency", "s"),
    FigureName.LATENCY_P95: ("P95 latency", "s"),
    FigureName.LATENCY_P99: ("P99 latency", "s"),
    FigureName.TTFT_P50: ("P50 TTFT", "s"),
    FigureName.TTFT_P95: ("P95 TTFT", "s"),
    FigureName.ITL_P50: ("P50 ITL", "s"),
    FigureName.ITL_P95: ("P95 ITL", "s"),
    FigureName.INPUT_TOKEN_RATE: ("tokens in", "tokens/s"),
    FigureName.OUTPUT_TOKEN_RATE: ("tokens out", "tokens/s"),
    FigureName.QUEUE: ("queue", "requests"),
    FigureName.RUNNING: ("running", "requests"),
    FigureName.KV_CACHE: ("KV cache", "ratio"),
    FigureName.PREEMPTION_RATE: ("preemptions", "preemptions/s"),
    FigureName.PREFIX_CACHE_HIT_RATE: ("prefix hits", "ratio"),
    FigureName.GPU_USE: ("GPU use", "ratio"),
    FigureName.GPU_MEMORY: ("GPU memory", "bytes"),
    FigureName.CPU: ("CPU", "cores"),
    FigureName.MEMORY: ("memory", "bytes"),
    FigureName.NETWORK_IN: ("network in", "bytes/s"),
    FigureName.NETWORK_OUT: ("network out", "bytes/s"),
}
"""Of each figure its name as shown, and its unit."""
_LATENCY_OF = {
    50: FigureName.LATENCY_P50,
    95: FigureName.LATENCY_P95,
    99: FigureName.LATENCY_P99,
}
_COUNTED = ("replicas", "requests", "cores")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def limits_of(policy: Policy, environment: str) -> Limits:
    """Return what the policy limits in an environment: by its gates, or else by its triggers."""
    gates, triggers = policy.environments[environment].gates, policy.triggers
    found: dict[FigureName, float] = {}
    for gate in (gates.live_metrics, gates.latency):
        if gate is not None and gate.percentile in _LATENCY_OF:
            found.setdefault(_LATENCY_OF[int(gate.percentile)], gate.limit_seconds)
    if gates.live_metrics is not None:
        found[FigureName.ERROR_RATE] = gates.live_metrics.error_rate
    elif gates.error_rate is not None:
        found[FigureName.ERROR_RATE] = gates.error_rate.limit
    found |= {name: gate.limit for name, gate in gates.resources.items()}
    if environment == policy.order[-1]:
        for name, rule in triggers.resources.items():
            found.setdefault(name, rule.above)
    return found


def figure_text(name: FigureName, figure: Figure, limit: float | None = None) -> str:
    """Return a figure in words, with its limit: `0.64 s of 3 s`, `41% (limit 90%)`, `3 of 4`."""
    if unknown_reason(figure) or figure.value is None:
        return NONE
    unit = LABELS[name][1]
    text = _with_whole(figure.value, figure, unit)
    compared = compared_value(name, figure)
    if limit is None or compared is None:
        return text
    if name is FigureName.GPU_MEMORY:
        unit = "ratio"
        text = f"{text}, {_measure(compared, unit)}"
    most = _measure(limit, unit if unit in ("s", "ratio") else "")
    if compared >= limit:
        return f"{text}, not below {most}"
    return f"{text} of {most}" if unit == "s" else f"{text} (limit {most})"


def compared_value(name: FigureName, figure: Figure) -> float | None:
    """Return what is compared with a limit: of GPU memory the share; None without it."""
    if unknown_reason(figure) or figure.value is None:
        return None
    if name is not FigureName.GPU_MEMORY:
        return figure.value
    return figure.share


def unknown_reason(figure: Figure) -> str:
    """Why a figure is not known, in a line; empty where it is. What no figure can be is not."""
    if figure.value is None:
        return shown(figure.unknown)
    if not 0 <= figure.value < math.inf or (figure.upper is not None and math.isnan(figure.upper)):
        return f"{shown(figure.source)} says {figure.value}"
    return ""


def origin_text(figure: Figure, now: datetime) -> str:
    """Return source and age of a figure."""
    if figure.at is None:
        return f"{shown(figure.source)}, of unknown age"
    seconds = round((now - figure.at).total_seconds())
    words = "old" if seconds >= 0 else "ahead of this machine's clock"
    age = format_duration(timedelta(seconds=abs(seconds)))
    return f"{shown(figure.source)}, {age} {words}"


def _with_whole(value: float, figure: Figure, unit: str) -> str:
    """The value, a bucket as its bounds, a part beside its whole."""
    if figure.upper is not None:
        if math.isinf(figure.upper):
            return f"above {_measure(value, unit)}"
        if not value:
            return f"at most {_measure(figure.upper, unit)}"
        if figure.upper > value:
            low = _measure(value, unit)
            return f"{low.removesuffix(f' {unit}')} to {_measure(figure.upper, unit)}"
    if figure.of is None or not math.isfinite(figure.of):
        return _measure(value, unit)
    whole = _measure(figure.of, unit)
    if unit in _COUNTED:
        return f"{_number(value)} of {whole}"
    part = _measure(value, unit)
    return f"{part.removesuffix(whole[whole.rindex(' ') :])} of {whole}"


def _measure(value: float, unit: str) -> str:
    """`0.64 s`, `12.3 requests/s`, `41%`, `7.2 GiB`: three digits, with the unit."""
    if unit == "ratio":
        return f"{_number(value * 100)}%"
    if unit in ("bytes", "bytes/s"):
        power = min(int(math.log(value, 1024)) if value >= 1 else 0, len(_BINARY) - 1)
        return f"{_number(value / 1024**power)} {_BINARY[power]}{unit.removeprefix('bytes')}"
    number = _number(value)
    return f"{number} {unit[:-1] if number == '1' and unit in _COUNTED else unit}".rstrip()


def _number(value: float) -> str:
    """Three significant digits, two below one."""
    if not value:
        return "0"
    digits = 2 - math.floor(math.log10(value)) if value >= 1 else 1 - math.floor(math.log10(value))
    text = f"{value:,.{max(0, digits)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
