"""Verdict on the load generator: if it was the bottleneck, its load shows nothing of the server."""

import math

from vllm_rollout.model.units import format_rate, format_share
from vllm_rollout.model.verdict import Outcome, Verdict, VerdictMethod

# A process is planned to be this busy: arrivals come in bursts, and so do answers.
_ROOM = 0.6


def generator_verdict(
    *,
    lag_seconds: float,
    max_lag_seconds: float,
    cpu: float,
    max_cpu: float,
    dropped: int,
    total: int,
    workers: int,
    cpu_seconds_per_request: float,
    rate_per_second: float,
    cores: int | None = None,
) -> Verdict:
    """Judge the generator of a load: a pass, or inconclusive with the number of workers it takes.

    Args:
        lag_seconds: how late requests left at P99; NaN where it is not known, which never passes.
        max_lag_seconds: what that may be.
        cpu: what the busiest worker used, as a fraction of a core; NaN as above.
        max_cpu: what that may be.
        dropped: requests of the schedule that were not sent.
        total: all requests of the schedule.
        workers: generator processes there were.
        cpu_seconds_per_request: CPU time of the generator for each request; NaN where unknown.
        rate_per_second: the highest rate that is asked for.
        cores: of the machine that the generator ran on; None where they are not limited by one.
    """
    lag = "an unknown time" if math.isnan(lag_seconds) else f"{lag_seconds * 1000:.0f} ms"
    used = "an unknown share" if math.isnan(cpu) else format_share(round(cpu, 3))
    asked = {
        f"at P99 requests left {lag} late (`load.max_lag`: {max_lag_seconds * 1000:g} ms)": (
            lag_seconds <= max_lag_seconds
        ),
        f"its busiest process used {used} of a core (`load.max_cpu`: {format_share(max_cpu)})": (
            cpu <= max_cpu
        ),
        f"{dropped:,} of {total:,} requests were not sent": not dropped,
        "no request was due": total > 0,
    }
    broken = [text for text, holds in asked.items() if not holds]
    verdict = Verdict(
        outcome=Outcome.PASS,
        reason=f"at P99 requests left {lag} late, and the busiest process used {used} of a core",
        measured=None if math.isnan(lag_seconds) else lag_seconds,
        limit=max_lag_seconds,
        n=total,
        unit="s",
        method=VerdictMethod.COMPARED,
    )
    if not broken:
        return verdict
    return verdict.inconclusive_because(
        f"the generator was the bottleneck: {'; '.join(broken)}",
        _remedy(workers, cpu_seconds_per_request, rate_per_second, cores),
    )


def workers_needed(cpu_seconds_per_request: float, rate_per_second: float) -> int | None:
    """Generator processes that a rate takes, with room; None where that cannot be computed."""
    busy = cpu_seconds_per_request * rate_per_second
    return max(1, math.ceil(busy / _ROOM)) if 0 <= busy < math.inf else None


def _remedy(workers: int, per_request: float, rate: float, cores: int | None) -> str:
    needed = workers_needed(per_request, rate)
    if needed is None:
        return "See why the generator measured nothing: its own log has the last lines it wrote."
    costs = f"a request takes it {per_request * 1000:.2g} ms of CPU and up to {_rate(rate)} are due"
    if needed <= workers:
        return (
            f"More workers would not help: {costs}, for which {_processes(needed)} should do and "
            f"{_processes(workers)} ran. Something else held the CPU: give the generator a "
            "machine of its own."
        )
    text = f"Set `load.workers` to {needed}: {costs}."
    if cores is not None and needed > cores:
        text += (
            f" The generator's machine has {cores} cores: use one that has more than {needed}, or "
            "ask for a lower rate; or make the load in the cluster (`--load-in-cluster`)."
        )
    return text


def _processes(count: int) -> str:
    return f"{count} process{'es'[: 2 * (count > 1)]}"


def _rate(rate: float) -> str:
    return format_rate(float(f"{rate:.4g}"))
