"""One probe: a load at one rate, judged while it is sent and ended as soon as it is decided."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vllm_rollout.capacity.model import NextProbe, Probe, Purpose
from vllm_rollout.capacity.rate_probe import Answers, RateProbe, Slos
from vllm_rollout.capacity.saturation import Backlog
from vllm_rollout.judge.generator import generator_verdict
from vllm_rollout.load.load_progress import LoadProgress
from vllm_rollout.load.run_load import Start, run_load
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import MOST_UNKNOWN, LoadResult, RequestRecord
from vllm_rollout.model.percentiles import percentile_of
from vllm_rollout.model.units import of_total
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.policy import Load


def send_probe(
    plan: LoadPlan,
    ask: NextProbe,
    *,
    slos: Slos,
    late_after_seconds: float,
    load: Load,
    cores: int | None,
    work_dir: Path,
    api_key: str | None,
    on_progress: Callable[[LoadProgress], None],
    start: Start | None = None,
) -> Probe:
    """Send `plan`'s requests at the rate asked for, and say what was found.

    `load` says what the generator may be late and how busy, `cores` how many its machine has (None
    where they are not limited by one), `start` starts one elsewhere.

    Raises: what `run_load` raises.
    """
    watch = _Watch(ask, slos, late_after_seconds)

    def sample(progress: LoadProgress) -> None:
        watch.sample(progress)
        on_progress(progress)

    result = run_load(
        replace(plan, rate_per_second=ask.per_second, duration_seconds=ask.most_seconds),
        work_dir=work_dir,
        api_key=api_key,
        on_progress=sample,
        enough=watch.enough,
        start=start,
    )
    generator = generator_verdict(
        result.generator,
        max_lag_seconds=load.max_lag_seconds,
        max_cpu=load.max_cpu,
        cores=cores,
    )
    return watch.end(result, generator)


class _Watch:
    """Judges a load while it runs."""

    def __init__(self, ask: NextProbe, slos: Slos, late_after_seconds: float) -> None:
        self._ask, self._slos = ask, slos
        self._judge = RateProbe(slos, pass_risk=ask.pass_risk, fail_risk=ask.fail_risk)
        self._backlog = Backlog(limit_seconds=late_after_seconds, risk=ask.fail_risk)
        self._taken = 0
        self._elapsed_seconds = 0.0
        self._saturated = ""

    def sample(self, progress: LoadProgress) -> None:
        """Take in how many requests are under way."""
        self._elapsed_seconds = progress.elapsed_seconds
        if not self._saturated and progress.elapsed_seconds <= self._ask.most_seconds:
            self._saturated = self._backlog.add(
                at=progress.elapsed_seconds, sent=progress.sent, ended=progress.done
            )

    def enough(self, records: Iterable[RequestRecord]) -> bool:
        """Take in what has ended; whether no more needs to be sent."""
        self._take(tuple(records))
        return bool(self._judge.failed or self._saturated or self._proved(self._elapsed_seconds))

    def end(self, result: LoadResult, generator: Verdict) -> Probe:
        """Return the probe, all requests considered."""
        self._take(result.requests[self._taken :])
        answers = answers_of(result.requests)
        seconds = result.judged_seconds
        latencies = np.sort(np.where(answers.failed, math.inf, answers.latency_seconds)).tolist()
        outcome, reason = Outcome.INCONCLUSIVE, self._undecided()
        limited = "" if generator.passed else f"{generator.reason}. {generator.remedy}".strip(". ")
        if not limited and self._slos.goodput and result.stalled > MOST_UNKNOWN * result.total:
            hidden = of_total(result.stalled, result.total, "answer")
            limited = f"the generator stalled while {hidden} came, so their times are not known"
        if result.incomplete or limited:
            reason = result.incomplete or limited
        elif self._judge.failed or self._saturated:
            outcome, reason = Outcome.FAIL, self._judge.failed or self._saturated
        elif self._proved(seconds):
            outcome, reason = Outcome.PASS, "every SLO holds"
        return Probe(
            per_second=self._ask.per_second,
            aim=self._ask.aim,
            outcome=outcome,
            holds=self._judge.holds_so_far,
            seconds=seconds,
            reason=reason,
            saturated=bool(self._saturated) and outcome is Outcome.FAIL,
            requests=result.total,
            failures=result.failures,
            offered_per_second=result.offered_per_second,
            p50_seconds=percentile_of(latencies, 50),
            p95_seconds=percentile_of(latencies, 95),
            good_per_second=float(np.count_nonzero(answers.good(self._slos))) / seconds
            if seconds > 0
            else None,
            generator_limited="" if result.incomplete else limited,
            unmeasured=result.incomplete,
        )

    def _take(self, records: Sequence[RequestRecord]) -> None:
        self._taken += len(records)
        self._judge.add(answers_of(records))

    def _proved(self, seconds: float) -> bool:
        return (
            self._ask.aim is not Purpose.EXPLORE
            and seconds >= self._ask.least_seconds
            and self._judge.passed
        )

    def _undecided(self) -> str:
        if self._judge.doubts:
            return f"not sure, against it speak: {', '.join(self._judge.doubts)}"
        return "held so far"


def answers_of(records: Sequence[RequestRecord]) -> Answers:
    """The records as rows."""
    return Answers(
        latency_seconds=np.array([r.latency_seconds for r in records], dtype=np.float64),
        failed=np.array([not r.ok for r in records], dtype=np.bool_),
        ttft_seconds=np.array([r.ttft_seconds for r in records], dtype=np.float64),
        inter_token_seconds=np.array([r.itl_seconds for r in records], dtype=np.float64),
    )
