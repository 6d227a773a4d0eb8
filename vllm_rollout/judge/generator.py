"""Verdict on the load generator: if it was the bottleneck, its load shows nothing of the server."""

import math
from collections.abc import Callable

from vllm_rollout.model.load_result import GeneratorFigures
from vllm_rollout.model.units import counted, format_rate, format_share, of_total
from vllm_rollout.model.verdict import Outcome, Verdict, VerdictMethod

# A process is planned to be this busy: arrivals come in bursts, and so do answers.
_ROOM = 0.6


def generator_verdict(
    figures: GeneratorFigures,
    *,
    max_lag_seconds: float,
    max_cpu: float,
    cores: int | None = None,
) -> Verdict:
    """Judge the generator of a load: a pass, or inconclusive with the number of workers it takes.

    A figure that is not known never passes.

    Args:
        figures: what it did.
        max_lag_seconds: how late requests may leave at P99.
        max_cpu: what the busiest worker may use, as a fraction of a core.
        cores: of the machine that the generator ran on; None where they are not limited by one.
    """
    lag_seconds, cpu = figures.lag_seconds, figures.cpu
    lag = "an unknown time" if lag_seconds is None else f"{lag_seconds * 1000:.0f} ms"
    used = "an unknown share" if cpu is None else format_share(round(cpu, 3))
    asked = {
        f"at P99 requests left {lag} late (`load.max_lag`: {max_lag_seconds * 1000:g} ms)": (
            lag_seconds is not None and lag_seconds <= max_lag_seconds
        ),
        f"its busiest process used {used} of a core (`load.max_cpu`: {format_share(max_cpu)})": (
            cpu is not None and cpu <= max_cpu
        ),
        f"{of_total(figures.dropped, figures.total, 'request')} not sent": not figures.dropped,
        "no request was due": figures.total > 0,
    }
    broken = [text for text, holds in asked.items() if not holds]
    verdict = Verdict(
        outcome=Outcome.PASS,
        reason=f"at P99 requests left {lag} late, and the busiest process used {used} of a core",
        measured=lag_seconds,
        limit=max_lag_seconds,
        n=figures.total,
        unit="s",
        method=VerdictMethod.COMPARED,
    )
    if not broken:
        return verdict
    return verdict.inconclusive_because(
        f"the generator was the bottleneck: {'; '.join(broken)}", _remedy(figures, cores)
    )


def despite_stalls(verdict: Verdict, at_best: Callable[[], Verdict], *, stalled: int) -> Verdict:
    """Return a verdict on times of which `stalled` answers have some that are not known.

    The generator stalled while it read them. `verdict` counts those times as long as they can be,
    `at_best` as short; where they decide, it is inconclusive.
    """
    if not stalled or verdict.outcome is Outcome.PASS:
        return verdict
    if at_best().outcome is verdict.outcome:
        return verdict
    return verdict.inconclusive_because(
        f"{stalled:,} of {verdict.n:,} requests have times that are not known, since the load "
        f"generator itself stalled while their answers came; counted as late, {verdict.reason}",
        "Give the load generator a machine of its own, or more of its CPU (a container's limit "
        "stops it in the middle of reading), and measure again.",
    )


def workers_needed(cpu_seconds_per_request: float, rate_per_second: float) -> int:
    """Generator processes that a rate takes, with room."""
    return max(1, math.ceil(cpu_seconds_per_request * rate_per_second / _ROOM))


def _remedy(figures: GeneratorFigures, cores: int | None) -> str:
    per_request, rate = figures.cpu_seconds_per_request, figures.rate_per_second
    workers = figures.workers
    if per_request is None or rate is None:
        return "See why the generator measured nothing: its own log has the last lines it wrote."
    needed = workers_needed(per_request, rate)
    each = f"{per_request * 1000:.2g} ms of CPU per request"
    costs = f"the generator needs {each}, at up to {_rate(rate)}"
    if needed <= workers:
        return (
            f"More workers would not help: {costs}, for which {_processes(needed)} should do and "
            f"{_processes(workers)} ran. Something else held the CPU: give the generator a "
            "machine of its own."
        )
    text = f"Set `load.workers` to {needed}: {costs}."
    if cores is not None and needed > cores:
        text += (
            f" The generator's machine has {counted(cores, 'core')}: use one that has more than "
            f"{needed}, or ask for a lower rate; or make the load in the cluster "
            "(`--load-in-cluster`)."
        )
    return text


def _processes(count: int) -> str:
    return f"{count} process{'es'[: 2 * (count > 1)]}"


def _rate(rate: float) -> str:
    return format_rate(float(f"{rate:.4g}"))
