"""How often the judge is wrong, how many requests it takes, and how fast it is.

Simulates services of which the truth is known, looks after every request, and counts wrong
passes (the share of bad requests is at the limit or above) and wrong fails (it is at the limit or
below). Beside them, on services drawn alike: Wald's sequential test, the fixed-sample test, and
the rules of other tools. Prints Markdown; `--json` writes the figures.

    nice -n 19 python benchmarks/judge_calibration.py --runs 20000 --json calibration.json
"""

import argparse
import json
import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from judge_peers import (
    LOOKS,
    Outcomes,
    fixed_requests,
    kayenta_interval,
    locust_percentile,
    naive_threshold,
    wald_requests,
)
from judge_services import (
    Bools,
    Floats,
    bimodal,
    bursts,
    drifting,
    half_in_bursts,
    lognormal,
    pareto,
)

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.anytime_valid import AnytimeShare
from vllm_rollout.judge.binomial import percentile_ranks, share_bounds
from vllm_rollout.judge.effective_sample_size import burst_length_so_far
from vllm_rollout.judge.mixture_sprt import e_process_above, e_process_below
from vllm_rollout.judge.ordered_verdicts import percentile_verdict_in_order, rate_verdict_in_order
from vllm_rollout.judge.percentile import percentile_verdict
from vllm_rollout.judge.sequential import SequentialPercentile, SequentialRate

CONFIDENCE = 0.95
NAMES = {0.001: (0.0001, 0.005), 0.01: (0.001, 0.05), 0.05: (0.01, 0.1)}
INSIDE, AT, OUTSIDE = "just inside", "at the limit", "just outside"
LIMIT_SECONDS = 3.0
BURST = 10
CODES = {Outcome.PASS: 1, Outcome.FAIL: -1, Outcome.INCONCLUSIVE: 0}

Row = dict[str, str | float]


class Boundary:
    """Where the e-processes on independent requests decide, worked out once for all runs.

    After k bad requests, `pass_at[k]` is the fewest requests that pass, `fail_until[k]` the most
    that fail.
    """

    def __init__(self, limit: float, good: float | None, bad: float | None, most: int) -> None:
        threshold, reach = -math.log(1 - CONFIDENCE), range(10**7)
        below, above = e_process_below(limit, good), e_process_above(limit, bad)

        def passing(k: int) -> int:
            return bisect_left(reach, threshold, lo=k, key=lambda n: below.log_e_value(k, n, limit))

        def failing(k: int) -> int:
            after = bisect_right(
                reach, -threshold, lo=k, key=lambda n: -above.log_e_value(k, n, limit)
            )
            return after - 1

        self.pass_at = np.array([passing(k) for k in range(most + 1)])
        self.fail_until = np.array([failing(k) for k in range(most + 1)])

    def run(
        self, rng: np.random.Generator, runs: int, share: float, horizon: float = math.inf
    ) -> tuple[Outcomes, Floats]:
        """Outcomes, and the requests they took, of services that fail at random."""
        outcomes, taken = np.zeros(runs, dtype=np.int8), np.full(runs, horizon)
        at, active = np.zeros(runs), np.arange(runs)
        for k in range(len(self.pass_at) - 1):
            after = at[active] + rng.geometric(share, len(active))  # when the next one fails
            passing = np.maximum(self.pass_at[k], at[active])
            passed = passing < np.minimum(after, horizon + 1)
            outcomes[active[passed]], taken[active[passed]] = 1, passing[passed]
            active, after = active[~passed], after[~passed]
            at[active] = after
            failed = after <= min(self.fail_until[k + 1], horizon)
            outcomes[active[failed]], taken[active[failed]] = -1, after[failed]
            active = active[~failed & (after <= horizon)]
        if len(active):
            raise RuntimeError(f"{len(active)} runs have more bad requests than were planned for")
        return outcomes, taken

    def follow(self, bad: Bools) -> Outcomes:
        """Outcomes of a table of requests."""
        counts, n = bad.cumsum(axis=1), np.arange(1, bad.shape[1] + 1)
        passes, fails = n >= self.pass_at[counts], n <= self.fail_until[counts]
        first = (np.arange(len(bad)), (passes | fails).argmax(axis=1))
        return passes[first].astype(np.int8) - fails[first]


def watch(bad: Bools, limit: float, burst: int, latencies: Floats | None = None) -> int:
    """What the sequential test itself decides of one stream, bursts searched for."""

    def dependence() -> int:
        if latencies is None:
            return 1
        so_far = latencies[: test.n]
        return burst_length_so_far(so_far, 95, limit_seconds=LIMIT_SECONDS)

    test = AnytimeShare(limit=limit, confidence=CONFIDENCE, burst=burst, dependence=dependence)
    for place in [*np.flatnonzero(bad).tolist(), len(bad)]:
        # Good requests only ever bring a pass nearer: a look after the last of them sees it.
        test.add_counted(0, 0, place - test.n)
        if test.outcome is Outcome.INCONCLUSIVE and place < len(bad):
            test.add_counted(1, 1, 1)
        if test.outcome is not Outcome.INCONCLUSIVE:
            break
    return CODES[test.outcome]


def counted(bad: Sequence[int], n: int, limit: float) -> Outcomes:
    """What the exact bounds decide of `bad` among `n`, one look, order not known."""
    bounds = {k: share_bounds(k, n, CONFIDENCE) for k in set(bad)}
    return np.array([(bounds[k][1] < limit) - (bounds[k][0] > limit) for k in bad], dtype=np.int8)


def row(service: str, truth: str, rule: str, outcomes: Outcomes | Sequence[int]) -> Row:
    """One line of the table: how often wrong, how often silent."""
    codes = np.asarray(outcomes)
    return {
        "service": service,
        "truth": truth,
        "rule": rule,
        "runs": len(codes),
        "wrong_pass": math.nan if truth == INSIDE else float(np.mean(codes == 1)),
        "wrong_fail": math.nan if truth == OUTSIDE else float(np.mean(codes == -1)),
        "inconclusive": float(np.mean(codes == 0)),
    }


def rate_rows(rng: np.random.Generator, runs: int) -> Iterator[Row]:
    """Independent failures at a tenth inside, at and a tenth outside of each limit."""
    for limit, named in NAMES.items():
        n = round(60 / limit)
        unnamed, expected = (Boundary(limit, *names, most=200) for names in ((None, None), named))
        for truth, factor in {INSIDE: 0.9, AT: 1.0, OUTSIDE: 1.1}.items():
            service, share = f"errors, limit {limit:.1%}", limit * factor
            yield row(service, truth, "sequential", unnamed.run(rng, runs, share, n)[0])
            yield row(service, truth, "sequential, named", expected.run(rng, runs, share, n)[0])
            fixed = counted(rng.binomial(n, share, runs).tolist(), n, limit)
            yield row(service, truth, "fixed sample", fixed)


def latency_rows(rng: np.random.Generator, runs: int) -> Iterator[Row]:
    """Independent latencies whose P95 is 1% inside, at and 1% outside of 3 s."""
    boundary = Boundary(0.05, None, None, most=400)
    n, chunk = 2400, min(runs, 1000)
    low, high = percentile_ranks(n, 0.95, CONFIDENCE)
    for law in (lognormal, pareto, bimodal):
        for truth, factor in {INSIDE: 0.99, AT: 1.0, OUTSIDE: 1.01}.items():
            rules: dict[str, list[Outcomes]] = {}
            for _ in range(math.ceil(runs / chunk)):
                latencies = law(rng, (chunk, n)) * factor * LIMIT_SECONDS
                late = latencies >= LIMIT_SECONDS
                fast = n - late.sum(axis=1)
                fixed = (fast >= (high or n + 1)).astype(np.int8) - (fast < (low or 0))
                rules.setdefault("sequential", []).append(boundary.follow(late))
                rules.setdefault("fixed sample", []).append(fixed)
                rules.setdefault("Locust's P95", []).append(
                    locust_percentile(latencies, LIMIT_SECONDS)
                )
            for rule, parts in rules.items():
                yield row(f"{law.__name__} latencies", truth, rule, np.concatenate(parts))


def burst_rows(rng: np.random.Generator, runs: int) -> Iterator[Row]:
    """Dependent requests: 6,000, of which a tenth fewer than, just, or a tenth over 5% are late.

    Rules in brackets know nothing of bursts and are here for comparison.
    """
    n, limit = 6000, 0.05
    services: Mapping[str, Callable[[float], Bools]] = {
        "stalls of 1 s, evenly": lambda share: bursts(rng, n, share, BURST, "periodic"),
        "stalls of 1 s, at random": lambda share: bursts(rng, n, share, BURST, "random"),
        "half of it in stalls": lambda share: half_in_bursts(rng, n, share, BURST),
        "bursts of 4 on average": lambda share: bursts(rng, n, share, 4, "geometric"),
    }
    for service, draw in services.items():
        for truth, factor in {INSIDE: 0.9, AT: 1.0, OUTSIDE: 1.1}.items():
            drawn = [draw(limit * factor) for _ in range(runs)]
            told = [watch(bad, limit, BURST) for bad in drawn]
            yield row(service, truth, f"sequential, burst={BURST}", told)
            judge = partial(rate_verdict_in_order, limit=limit, confidence=CONFIDENCE)
            found = [CODES[judge(bad).outcome] for bad in drawn]
            yield row(service, truth, "fixed sample, in order", found)
            blind = counted([int(np.count_nonzero(bad)) for bad in drawn], n, limit)
            yield row(service, truth, "[fixed sample]", blind)
            if truth == AT:
                untold = [watch(bad, limit, 1) for bad in drawn]
                yield row(service, truth, "[sequential, burst=1]", untold)
    for memory in (0.9, 0.97):
        service = f"latencies that drift, memory {memory}"
        for truth, factor in {INSIDE: 0.9, AT: 1.0, OUTSIDE: 1.1}.items():
            told, found = [], []
            for _ in range(runs):
                latencies = drifting(rng, n, limit * factor, memory) * LIMIT_SECONDS
                late = latencies >= LIMIT_SECONDS
                told.append(watch(late, limit, BURST, latencies))
                verdict = percentile_verdict_in_order(
                    latencies, percentile=95, limit_seconds=LIMIT_SECONDS, confidence=CONFIDENCE
                )
                found.append(CODES[verdict.outcome])
            yield row(service, truth, f"sequential, burst={BURST}", told)
            yield row(service, truth, "fixed sample, in order", found)
    drawn = [bursts(rng, n, 0.1, BURST, "periodic") for _ in range(runs)]
    told = [watch(bad, 0.1, BURST) for bad in drawn]
    yield row("stalls of 1 s in 10 s, P90", AT, f"sequential, burst={BURST}", told)


def peer_rows(rng: np.random.Generator, runs: int) -> Iterator[Row]:
    """Other tools' rules on the errors above; Kayenta's against a baseline a fifth inside."""
    for limit in NAMES:
        n = round(60 / limit)
        for truth, factor in {INSIDE: 0.8, AT: 1.0, OUTSIDE: 1.1}.items():
            service, share = f"errors, limit {limit:.1%}", limit * factor
            naive = naive_threshold(rng, runs, share, limit, n)
            yield row(service, truth, f"threshold, {LOOKS} looks", naive)
            canary = kayenta_interval(rng, runs, share, limit * 0.8, n)
            yield row(service, truth, "Kayenta's interval", canary)


def length_rows(rng: np.random.Generator, runs: int) -> Iterator[Row]:
    """Mean number of requests to a verdict at the good rate and at the bad one."""
    for limit, named in NAMES.items():
        boundaries = [Boundary(limit, *names, most=200) for names in ((None, None), named)]
        for share in named:
            wald = wald_requests(rng, runs, share, limit, 1 - CONFIDENCE)
            unnamed, expected = (float(b.run(rng, runs, share)[1].mean()) for b in boundaries)
            yield {
                "limit": f"{limit:.1%}",
                "truth": f"{share:.2%}",
                "wald": wald,
                "named": expected,
                "named_ratio": expected / wald,
                "unnamed": unnamed,
                "unnamed_ratio": unnamed / wald,
                "fixed": fixed_requests(*sorted((share, limit)), 1 - CONFIDENCE),
            }


def speed_rows(rng: np.random.Generator) -> Iterator[Row]:
    """CPU seconds, the best of three."""

    def best(task: Callable[[], object]) -> float:
        taken = []
        for _ in range(3):
            begin = time.process_time()
            task()
            taken.append(time.process_time() - begin)
        return min(taken)

    latencies = rng.lognormal(0, 0.6, 10_000_000)
    asked = {"percentile": 95, "limit_seconds": LIMIT_SECONDS, "confidence": CONFIDENCE}
    yield {
        "task": "percentile_verdict on 10,000,000 latencies",
        "seconds": best(lambda: percentile_verdict(latencies, **asked)),
    }
    yield {
        "task": "SequentialPercentile.update on 10,000,000 latencies",
        "seconds": best(lambda: SequentialPercentile(**asked).update(latencies)),
    }
    n = 200_000
    failed = (rng.random(n) < 0.01).astype(int).tolist()
    single = [[4.0 if bad else 1.0] for bad in failed]

    def rates() -> None:
        test = SequentialRate(limit=0.01, confidence=CONFIDENCE)
        for bad in failed:
            test.update(bad, 1)

    def percentiles() -> None:
        test = SequentialPercentile(percentile=99, limit_seconds=3.0, confidence=CONFIDENCE)
        for one in single:
            test.update(one)

    yield {"task": "SequentialRate.update, one request", "seconds": best(rates) / n}
    yield {"task": "SequentialPercentile.update, one request", "seconds": best(percentiles) / n}


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table: shares in percent, ratios and counts as they are."""

    def text(name: str, value: str | float) -> str:
        if isinstance(value, str):
            return value
        if math.isnan(value):
            return "–"
        if name in {"wrong_pass", "wrong_fail", "inconclusive"}:
            return f"{value:.2%}"
        if name == "seconds":
            return f"{value:.3f} s" if value > 0.001 else f"{value * 1e6:.2f} µs"
        return f"{value:.2f}" if name.endswith("_ratio") else f"{value:,.0f}"

    head = list(rows[0])
    lines = [[text(name, line[name]) for name in head] for line in rows]
    parts = [[name.replace("_", " ") for name in head], ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(part) + " |" for part in parts)


def main() -> None:
    """Run all parts, print them as they come."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20_000, help="simulated runs per cell")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    parts = {
        "Requests to a verdict": partial(length_rows, rng, arguments.runs),
        "Independent failures": partial(rate_rows, rng, arguments.runs),
        "Independent latencies": partial(latency_rows, rng, arguments.runs),
        "Bursts": partial(burst_rows, rng, arguments.runs),
        "Other tools": partial(peer_rows, rng, arguments.runs),
        "Speed": partial(speed_rows, rng),
    }
    figures: dict[str, list[Row]] = {}
    for title, make in parts.items():
        begin = time.monotonic()
        figures[title] = list(make())
        print(f"## {title}\n\n{table(figures[title])}\n")
        print(f"({time.monotonic() - begin:.0f} s)\n", flush=True)
    if arguments.json:
        safe = {
            title: [
                {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in line.items()}
                for line in lines
            ]
            for title, lines in figures.items()
        }
        arguments.json.write_text(json.dumps({"seed": arguments.seed, **safe}, indent=1) + "\n")


if __name__ == "__main__":
    main()
