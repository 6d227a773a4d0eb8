"""What slow spells do to verdicts: passes of healthy services, and wrong passes at the limit.

Loads of 6,000 requests. Prints Markdown, a block for latencies (P95 below 3 s) and one for
failures (at limits of 5% and 1%): shares of passes and of fails. "At the limit" means that the
true share of bad requests is the limit, so that a pass is wrong and so is a fail. `bursts` is how
many one load has on average.

    nice -n 19 python benchmarks/judge_bursts.py --runs 4000
"""

import argparse
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from judge_services import (
    Bools,
    Floats,
    bursts,
    drifting,
    gamma_spells,
    half_in_bursts,
    healthy,
    late,
    late_in_spells,
)

from vllm_rollout.judge import Outcome, Verdict, percentile_verdict_in_order, rate_verdict_in_order

N, LIMIT_SECONDS, CONFIDENCE = 6000, 3.0, 0.95
SPELLS = ((1, 300, 4), (1, 300, 6), (3, 100, 6), (3, 50, 10), (3, 20, 20))
LENGTHS = (1, 10, 30, 50, 100, 300)

Row = tuple[str, str, list[Outcome]]
Random = np.random.Generator


def rows(
    services: Mapping[tuple[str, float], Callable[[Random], Floats | Bools]],
    judge: Callable[[Floats | Bools], Verdict],
    runs: int,
) -> Iterator[Row]:
    """Judge `runs` loads of each service; each service has a seed of its own."""
    for seed, ((name, expected), draw) in enumerate(services.items()):
        rng = np.random.default_rng([13, seed])
        yield name, f"{expected:.3g}", [judge(draw(rng)).outcome for _ in range(runs)]


def bad_at(limit: float) -> dict[tuple[str, float], Callable[[Random], Bools]]:
    """Which requests are bad, the true share being `limit`."""
    shapes: dict[tuple[str, float], Callable[[Random], Bools]] = {}
    for mean in LENGTHS:
        expected = N * limit / mean
        shapes[f"bursts of {mean}", expected] = lambda rng, mean=mean: bursts(
            rng, N, limit, mean, "random"
        )
        if mean > 1:
            shapes[f"bursts of {mean} on average", expected] = lambda rng, mean=mean: bursts(
                rng, N, limit, mean, "geometric"
            )
    for mean in (10, 50):
        shapes[f"half in bursts of {mean}, half alone", N * limit / mean / 2] = (
            lambda rng, mean=mean: half_in_bursts(rng, N, limit, mean)
        )
    return shapes


def latencies_at_limit() -> dict[tuple[str, float], Callable[[Random], Floats]]:
    """Services of which 5% of the requests take 3 s or longer."""
    share = 0.05
    shapes: dict[tuple[str, float], Callable[[Random], Floats]] = {
        name: lambda rng, draw=draw: late(rng, draw(rng), LIMIT_SECONDS)
        for name, draw in bad_at(share).items()
    }
    for mean in (50, 100, 300):
        for inside in (0.1, 0.5):
            name = f"gamma spells of {mean}, {inside:.0%} of them late"
            shapes[name, N * share / inside / mean] = lambda rng, mean=mean, inside=inside: (
                late_in_spells(
                    rng, gamma_spells(rng, N, share / inside, mean), LIMIT_SECONDS, inside
                )
            )
    for memory in (0.9, 0.97, 0.99, 0.997):
        shapes[f"latencies that drift, AR(1) {memory}", float("nan")] = lambda rng, memory=memory: (
            drifting(rng, N, share, memory) * LIMIT_SECONDS
        )
    shapes["just above 3 s in bursts of 10, a fifth at 2.97 s in bursts of 100", 30] = nearly_late
    for mean in (10, 50):
        shapes[f"bursts of {mean}, none below 1.6 s", N * share / mean] = lambda rng, mean=mean: (
            late(rng, bursts(rng, N, share, mean, "random"), LIMIT_SECONDS, rest=1.6)
        )
    return shapes


def nearly_late(rng: Random) -> Floats:
    """Bursts just above the limit among longer ones just below it."""
    over, under = bursts(rng, N, 0.05, 10, "random"), bursts(rng, N, 0.2, 100, "geometric")
    return np.where(over, 3.003, np.where(under, 2.97, late(rng, np.zeros_like(over), 3.0)))


def table(title: str, found: Iterator[Row]) -> None:
    """Print a table as it grows."""
    print(f"\n| {title} | bursts | pass | fail |\n|---|---|---|---|")
    for name, expected, outcomes in found:
        passes, fails = (outcomes.count(each) / len(outcomes) for each in ("pass", "fail"))
        print(f"| {name} | {expected} | {passes:.1%} | {fails:.1%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="simulated loads per row")
    parser.add_argument("--only", choices=("healthy", "latencies", "failures"))
    arguments = parser.parse_args()
    runs, only = arguments.runs, arguments.only

    def of_latencies(values: Floats | Bools) -> Verdict:
        return percentile_verdict_in_order(
            values, percentile=95, limit_seconds=LIMIT_SECONDS, confidence=CONFIDENCE
        )

    good = {
        (f"{length} requests × {slower}, {spells} times", spells): (
            lambda rng, spell=(spells, length, slower): healthy(rng, N, *spell)
        )
        for spells, length, slower in SPELLS
    }
    if only in (None, "healthy"):
        table("healthy services, P95 below 3 s", rows(good, of_latencies, runs))
    if only in (None, "latencies"):
        table("P95 at the limit of 3 s", rows(latencies_at_limit(), of_latencies, runs))
    for limit in (0.05, 0.01) if only in (None, "failures") else ():

        def of_failures(bad: Floats | Bools, limit: float = limit) -> Verdict:
            return rate_verdict_in_order(bad, limit=limit, confidence=CONFIDENCE)

        table(f"failures at the limit of {limit:.0%}", rows(bad_at(limit), of_failures, runs))


if __name__ == "__main__":
    main()
