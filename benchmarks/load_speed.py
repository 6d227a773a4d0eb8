"""How much open-loop load one core makes, next to other tools against the same server.

    python benchmarks/load_speed.py
    python benchmarks/load_speed.py --quick

Prints the highest rate at which the suite, with every measurement on, still sends on time (schedule
lag P99 below 5 ms, every request answered) from one core; the same for streams, with tokens per
second and streams at once; and what the closed-loop tools reach on that core. Every rate is tried
`--repeats` times and its median lag counts. Requests per CPU second are printed too: they tell
about the code where others use the machine. Two workers share the machine's two cores with the
server, so that line is a lower bound.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from load_peers import ToolRun, bare, guidellm, locust_users, vllm_bench, wrk
from load_tools import WARMUP_SECONDS, Figures, Server, SuiteRun, noise, serving, suite, undisturbed

from vllm_rollout.load.arrivals import arrivals

_LAG_SECONDS = 0.005
_STEP = 2 ** (1 / 3)
_CLIENTS = 64
_STREAM_TTFT_SECONDS, _STREAM_GAP_SECONDS, _STREAM_TOKENS = 0.05, 0.02, 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One rate that was tried: medians of its runs; times in seconds."""

    rate: float
    lag: Figures
    latency: Figures
    served: Figures
    failures: int
    generator_cpu: float
    server_cpu: float
    waited_share: float
    stolen_share: float
    per_cpu_second: float
    tokens_per_second: float
    gaps_late_p99: float

    @property
    def holds(self) -> bool:
        """Whether the load was sent on time and answered."""
        return self.failures == 0 and self.lag.p99 < _LAG_SECONDS

    def __str__(self) -> str:
        tokens = f" {self.tokens_per_second:8,.0f} tok/s" if self.tokens_per_second else ""
        error = (self.latency.p95 - self.served.p95) * 1000
        return (
            f"{self.rate:8,.0f} req/s{tokens}  lag P50 {self.lag.p50 * 1000:7.2f} P99"
            f" {self.lag.p99 * 1000:8.2f} ms  P95 {error:+.2f} ms of the server's record"
            f"  CPU {self.generator_cpu:4.0%} (server {self.server_cpu:.0%}, others"
            f" {self.waited_share:.0%}, stolen {self.stolen_share:.0%})"
            f"  {self.per_cpu_second:7,.0f} req per CPU second"
            f"{'' if self.holds else '  does not hold'}"
        )


def once(server: Server, rate: float, options: Any, **load: Any) -> Step:
    """One run at one rate."""
    run = undisturbed(lambda: suite(server, rate=rate, seconds=options.seconds, **load))
    record = {number: (read, end) for number, read, _, end in run.truth["requests"]}
    result = run.result
    sent = len(record)
    total = options.seconds + WARMUP_SECONDS
    return Step(
        rate=result.offered_per_second,
        lag=run.lag,
        latency=Figures.of(r.latency_seconds for r in result.requests if r.ok),
        served=_from_intended(run, record),
        failures=result.failures,
        generator_cpu=result.generator_cpu,
        server_cpu=run.server_seconds / total,
        waited_share=run.waited_share,
        stolen_share=run.stolen_share,
        per_cpu_second=sent / result.generator_seconds,
        tokens_per_second=result.gaps.count / options.seconds if load["stream"] else 0.0,
        gaps_late_p99=(result.gaps.p99_seconds or math.nan) - _STREAM_GAP_SECONDS,
    )


def _from_intended(run: SuiteRun, record: dict[int, tuple[float, float]]) -> Figures:
    """The server's record of each answer's end, from when the request was due."""
    plan = run.result.plan
    return Figures.of(
        record[number][1] - run.zero - intended
        for number, intended in enumerate(arrivals(plan))
        if intended >= plan.warmup_seconds and number in record
    )


def highest(server: Server, first: float, options: Any, **load: Any) -> list[Step]:
    """Raise the rate until it does not hold; every step that was tried."""
    steps: list[Step] = []
    rate = first
    while True:
        runs = [once(server, rate, options, **load) for _ in range(options.repeats)]
        step = sorted(runs, key=lambda each: each.lag.p99)[len(runs) // 2]
        steps.append(step)
        print(f"  {step}", flush=True)
        if not step.holds:
            return steps
        rate *= _STEP


def best(steps: Sequence[Step]) -> float:
    """The highest rate that held; 0 if none did."""
    return max((step.rate for step in steps if step.holds), default=0.0)


def others(server: Server, options: Any) -> dict[str, float | str]:
    """Requests per second of closed-loop tools on one core, not streamed; medians."""

    def users(kind: str) -> ToolRun:
        return locust_users(kind, server, users=_CLIENTS, seconds=options.seconds, stream=False)

    tools = {
        "wrk, one thread": lambda: wrk(server, clients=_CLIENTS, seconds=options.seconds),
        "bare geventhttpclient": lambda: bare(server, clients=_CLIENTS, seconds=options.seconds),
        "Locust FastHttpUser": lambda: users("FastHttp"),
        "Locust HttpUser": lambda: users("Http"),
        "GuideLLM (streamed, asked for 2,000)": lambda: guidellm(
            server, rate=2000, seconds=options.seconds
        ),
        "vllm bench serve (asked for 2,000)": lambda: vllm_bench(
            server, rate=2000, seconds=options.seconds, stream=False
        ),
    }
    found: dict[str, float | str] = {}
    for name, run in tools.items():
        runs = [run() for _ in range(options.repeats)]
        rates = [each.rate for each in runs if isinstance(each, ToolRun)]
        reasons = [each for each in runs if isinstance(each, str)]
        found[name] = statistics.median(rates) if rates else reasons[0]
    return found


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of judged load per run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--first", type=float, default=3000.0, help="rate to begin with")
    parser.add_argument("--first-streams", type=float, default=150.0, help="rate of new streams")
    parser.add_argument("--quick", action="store_true", help="one short run each")
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.repeats = 4.0, 1
    with serving() as server:
        print(f"Whole answers, one worker on one core ({noise()})")
        one = highest(server, options.first, options, stream=False)
        print(f"Whole answers, two workers on both cores, server included ({noise()})")
        two = highest(server, options.first, options, stream=False, workers=2)
        peers = {} if options.without_peers else others(server, options)
    times = {"ttft": _STREAM_TTFT_SECONDS, "spread": 0.0, "inter_token": _STREAM_GAP_SECONDS}
    with serving(**times) as server:
        print(f"Streams of {_STREAM_TOKENS} tokens, 50 tokens/s each, one worker ({noise()})")
        streams = highest(
            server, options.first_streams, options, stream=True, tokens=_STREAM_TOKENS
        )
    lasts = _STREAM_TTFT_SECONDS + _STREAM_GAP_SECONDS * (_STREAM_TOKENS - 1)
    held = [step for step in streams if step.holds]
    print(f"\nOne core, open loop, on time:   {best(one):9,.0f} req/s")
    print(f"Two workers, server beside:     {best(two):9,.0f} req/s")
    if held:
        last = held[-1]
        print(
            f"One core, streams:              {last.rate * lasts:9,.0f} at once, "
            f"{last.tokens_per_second:,.0f} tokens/s, gaps' P99 {last.gaps_late_p99 * 1000:.1f} ms "
            "over the server's"
        )
    for name, rate in peers.items():
        if isinstance(rate, str):
            print(f"{name}: {rate}")
        else:
            print(
                f"{name:<38} {rate:9,.0f} req/s: the suite makes {best(one) / rate:.2f} times that"
            )
    found = {"one": one, "two": two, "streams": streams, "peers": peers}
    if options.json:
        options.json.write_text(json.dumps(found, indent=2, default=asdict))


if __name__ == "__main__":
    main()
