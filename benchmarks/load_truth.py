"""Whether the suite's load tells the truth, next to Locust's own users, GuideLLM and vLLM's bench.

    python benchmarks/load_truth.py            # 50 to 1,000 requests per second, 5 runs each
    python benchmarks/load_truth.py --quick

`load_peers.py` installs the other tools.

The server of `load_server.py` writes down when it read each request and when it wrote its first and
its last byte, on the same monotonic clock that the suite's schedule is laid on. Three truths of a
request that was due at d:

* recorded: the server's last byte (first token) minus d. What the suite measured of this very run
  must equal its percentiles within 1% or 2 ms, the larger, by the median of the runs. A run that
  the machine disturbed (see `load_tools.undisturbed`) is made again.
* ideal: what a client without any delay of its own would have seen. The server takes a time that
  follows from the request's number, and what falls into a freeze waits for its end. Under a freeze
  the suite must equal this one too.
* served: last byte minus read. The most that a closed loop can know: a request that was not sent
  because others were waited for is in no record.

Another tool's figures stand beside the `served` truth of its own requests, and under a freeze
beside the open-loop truth of the same rate.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from load_peers import ToolRun, guidellm, locust_users, vllm_bench
from load_server import Timing
from load_tools import TOKENS, Figures, Server, SuiteRun, noise, serving, suite, undisturbed

from vllm_rollout.load.arrivals import arrivals

TTFT_SECONDS, SPREAD, INTER_TOKEN_SECONDS = 0.05, 0.25, 0.005
_TIMING = Timing(TTFT_SECONDS, SPREAD, INTER_TOKEN_SECONDS)
_TOLERANCE_SHARE, _TOLERANCE_SECONDS = 0.01, 0.002
_WIDTH = 34


def median(runs: Sequence[Figures]) -> Figures:
    """The median of each percentile over the runs."""
    return Figures(
        **{name: statistics.median(getattr(run, name) for run in runs) for name in asdict(runs[0])}
    )


def thawed(moment: float, freezes: Sequence[Sequence[float]]) -> float:
    """The moment, or the end of the freeze that it falls into."""
    return next((end for begin, end in freezes if begin <= moment < end), moment)


def truths(run: SuiteRun) -> dict[str, Figures]:
    """Percentiles of what was, as the server's record and the schedule tell."""
    truth = run.truth
    record = {number: (first, end) for number, _, first, end in truth["requests"]}
    plan = run.result.plan
    recorded, recorded_ttft, ideal, ideal_ttft = [], [], [], []
    for number, intended in enumerate(arrivals(plan)):
        if intended < plan.warmup_seconds or number not in record:
            continue
        due = run.zero + intended
        first, end = record[number]
        recorded.append(end - due)
        recorded_ttft.append(first - due)
        read = thawed(due, truth["freezes"])
        token = read + _TIMING.ttft_seconds(number)
        last = token + INTER_TOKEN_SECONDS * (TOKENS - 1)
        ideal.append(thawed(last, truth["freezes"]) - due)
        ideal_ttft.append(thawed(token, truth["freezes"]) - due)
    found = {"latency recorded": Figures.of(recorded), "latency ideal": Figures.of(ideal)}
    if plan.classes[0].stream:
        found["TTFT recorded"] = Figures.of(recorded_ttft)
        found["TTFT ideal"] = Figures.of(ideal_ttft)
    return found


def measured(run: SuiteRun) -> dict[str, Figures]:
    """Percentiles as the suite measured them."""
    result = run.result
    found = {"latency": Figures.of(result.latencies_seconds)}
    if result.plan.classes[0].stream:
        found["TTFT"] = Figures.of(r.ttft_seconds for r in result.requests if r.ok)
    return found


def off(figures: Figures, truth: Figures) -> Figures:
    """By how much each percentile differs from the truth."""
    pairs = zip(figures.values(), truth.values(), strict=True)
    p50, p95, p99 = (mine - true for mine, true in pairs)
    return Figures(p50=p50, p95=p95, p99=p99)


def within(error: Figures, truth: Figures) -> bool:
    """Whether each percentile's error is at most 1% of the truth, or 2 ms."""
    return all(
        abs(wrong) <= max(_TOLERANCE_SECONDS, _TOLERANCE_SHARE * true)
        for wrong, true in zip(error.values(), truth.values(), strict=True)
    )


def show(name: str, figures: Figures, remark: str = "") -> None:
    """One line of the table."""
    print(f"  {name:<{_WIDTH}} {figures} {remark}", flush=True)


def compare(
    server: Server, rate: float, *, stream: bool, frozen: bool, options: Any
) -> dict[str, Any]:
    """Run the suite some times and the others once; print and return a block of the table."""
    kind = f"{rate:g} req/s, {'streamed' if stream else 'whole'}{', frozen 1 s in 10' * frozen}"
    print(f"\n{kind} ({noise()})\n  {'':<{_WIDTH}}    P50 ms    P95 ms    P99 ms")
    found: list[dict[str, Figures]] = []
    notes = []
    for _ in range(options.repeats):
        run = undisturbed(lambda: suite(server, rate=rate, seconds=options.seconds, stream=stream))
        notes.append(
            {
                "lag_p99": run.lag.p99,
                "waited_share": run.waited_share,
                "stolen_share": run.stolen_share,
                "failures": run.result.failures,
            }
        )
        found.append({**measured(run), **truths(run), "lag": run.lag})
    block: dict[str, Any] = {"kind": kind, "runs": notes, "figures": {}, "holds": {}}
    for name in found[0]:
        figures = median([each[name] for each in found])
        block["figures"][name] = asdict(figures)
        show(f"suite {name}" if name in measured_names(stream) else name, figures)
        for against in (f"{name} recorded", f"{name} ideal"):
            if against in found[0]:
                errors = [off(each[name], each[against]) for each in found]
                good = sum(map(within, errors, (each[against] for each in found)))
                error, true = median(errors), median([each[against] for each in found])
                block["figures"][f"{name} less {against}"] = asdict(error)
                block["holds"][against] = within(error, true)
                word = "within" if block["holds"][against] else "not within"
                show(f"  less {against}", error, f" {word}, and in {good} of {len(found)} runs")
    waited, stolen = (max(note[f"{kind}_share"] for note in notes) for kind in ("waited", "stolen"))
    print(f"  others kept the generator from its core up to {waited:.1%} of the time, ", end="")
    print(f"and the hypervisor took {stolen:.1%}")
    for name, other in peers(server, rate, stream=stream, options=options).items():
        if isinstance(other, str):
            print(f"  {name}: {other}")
            block["figures"][name] = other
            continue
        tool, served = other
        block["figures"][name] = {**asdict(tool), "served": asdict(served)}
        show(f"{name} ({tool.rate:.0f} req/s)", tool.latency)
        show("  served, of the same requests", served)
        if stream and tool.ttft.p50 == tool.ttft.p50:
            show("  its TTFT", tool.ttft)
    return block


def measured_names(stream: bool) -> tuple[str, ...]:
    """Which lines are the suite's own figures."""
    return ("latency", "TTFT", "lag") if stream else ("latency", "lag")


def peers(
    server: Server, rate: float, *, stream: bool, options: Any
) -> dict[str, tuple[ToolRun, Figures] | str]:
    """The other tools' figures, with what the server says of the same requests."""
    found: dict[str, tuple[ToolRun, Figures] | str] = {}

    def add(name: str, run: ToolRun | str) -> None:
        rows = server.truth()["requests"]
        served = Figures.of(end - received for _, received, _, end in rows)
        found[name] = run if isinstance(run, str) else (run, served)

    if rate not in options.peers_at:
        return found
    # Paced users that ask once a second, as Locust's documentation advises for a rate.
    for kind in ("FastHttp", "Http"):
        server.forget()
        users = max(1, round(rate))
        common = {"users": users, "seconds": options.seconds, "stream": stream}
        add(f"Locust {kind}User", locust_users(kind, server, rate=rate, **common))
    server.forget()
    add("vllm bench serve", vllm_bench(server, rate=rate, seconds=options.seconds, stream=stream))
    if stream:
        server.forget()
        add("GuideLLM", guidellm(server, rate=rate, seconds=options.seconds))
    return found


def main() -> None:
    """Parse the command line, compare, and write the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rates", type=float, nargs="*", default=[50, 200, 500, 1000])
    parser.add_argument("--seconds", type=float, default=20.0, help="of judged load per run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one short run of 200 req/s each")
    parser.add_argument("--peers-at", type=float, nargs="*", default=[50, 200, 1000])
    parser.add_argument("--without-freeze", action="store_true")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    if options.quick:
        options.rates, options.seconds, options.repeats = [200.0], 10.0, 1
    times = {"ttft": TTFT_SECONDS, "spread": SPREAD, "inter_token": INTER_TOKEN_SECONDS}
    blocks: list[dict[str, Any]] = []
    with serving(**times) as server:
        blocks += [
            compare(server, rate, stream=stream, frozen=False, options=options)
            for rate in options.rates
            for stream in (False, True)
        ]
    if not options.without_freeze:
        with serving(**times, freeze=1.0) as server:
            rate = options.rates[0]
            blocks.append(compare(server, rate, stream=False, frozen=True, options=options))
    if options.json:
        options.json.write_text(json.dumps(blocks, indent=2))
    short = [
        f"{block['kind']}: {name}"
        for block in blocks
        for name, holds in block["holds"].items()
        if name.endswith("recorded") and not holds
    ]
    print("\n" + ("\n".join(["Not within by the median:", *short]) if short else "All within."))
    sys.exit(1 if short else 0)


if __name__ == "__main__":
    main()
