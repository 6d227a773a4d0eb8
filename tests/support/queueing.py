"""A service simulated as a queue: `servers` that each serve one request at a time, in order.

Its true capacity is known: for exponential service by Erlang's formula, else by long simulation.
"""

import heapq
import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from vllm_rollout.capacity.judge import next_step
from vllm_rollout.capacity.model import Capacity, NextProbe, Probe, Purpose, SearchConfig
from vllm_rollout.capacity.rate_probe import Answers, RateProbe, Slos
from vllm_rollout.capacity.saturation import Backlog
from vllm_rollout.model.verdict import Outcome


@dataclass(frozen=True)
class Queue:
    """`law` is how long service takes: `exponential` or `constant`, `mean_seconds` on average."""

    servers: int
    mean_seconds: float
    law: str = "exponential"
    error_rate: float = 0.0

    @property
    def throughput(self) -> float:
        """Requests a second that it can end."""
        return self.servers / self.mean_seconds

    def capacity(self, limit_seconds: float, late: float = 0.05) -> float:
        """The rate at which `late` of the requests take longer than the limit, for good."""
        if self.law == "exponential":
            return brentq(
                lambda rate: self._late(rate, limit_seconds) - late,
                1e-6 * self.throughput,
                self.throughput * (1 - 1e-9),
            )
        low, high = 0.05 * self.throughput, self.throughput
        for _ in range(14):
            middle = (low + high) / 2
            arrivals, ends = self.run(middle, 60_000 / middle, np.random.default_rng(7))
            share = np.mean((ends - arrivals)[2_000:] >= limit_seconds)
            low, high = (middle, high) if share < late else (low, middle)
        return (low + high) / 2

    def _late(self, rate: float, seconds: float) -> float:
        """P(sojourn > seconds) of M/M/c: Erlang C, then the sum of waiting and service."""
        mu, c = 1 / self.mean_seconds, self.servers
        offered = rate / mu
        blocked = 1.0  # Erlang B by its recursion
        for n in range(1, c + 1):
            blocked = offered * blocked / (n + offered * blocked)
        waits = blocked / (1 - offered / c * (1 - blocked))
        eta = c * mu - rate
        if abs(eta - mu) < 1e-9:
            eta += 1e-6
        both = (eta * math.exp(-mu * seconds) - mu * math.exp(-eta * seconds)) / (eta - mu)
        return (1 - waits) * math.exp(-mu * seconds) + waits * both

    def run(self, rate: float, seconds: float, rng: np.random.Generator):
        """Poisson arrivals from an idle start: when each request came and when it ended."""
        arrivals = np.cumsum(rng.exponential(1 / rate, size=int(rate * seconds * 1.5) + 50))
        arrivals = arrivals[arrivals < seconds]
        service = (
            rng.exponential(self.mean_seconds, size=arrivals.size)
            if self.law == "exponential"
            else np.full(arrivals.size, self.mean_seconds)
        )
        free = [0.0] * self.servers
        ends = np.empty(arrivals.size)
        for i, (came, takes) in enumerate(zip(arrivals.tolist(), service.tolist(), strict=True)):
            end = max(came, free[0]) + takes
            heapq.heapreplace(free, end)
            ends[i] = end
        return arrivals, ends


def send(queue: Queue, slos: Slos, ask: NextProbe, rng: np.random.Generator) -> Probe:
    """One probe of the queue, looked at once a second, as a load run is."""
    arrivals, ends = queue.run(ask.per_second, ask.most_seconds, rng)
    failed = rng.random(arrivals.size) < queue.error_rate
    judge = RateProbe(slos, pass_risk=ask.pass_risk, fail_risk=ask.fail_risk)
    backlog = Backlog(limit_seconds=slos.slow_seconds or 30.0, risk=ask.fail_risk)
    told, at, why, saturated = 0, 0.0, "", False
    order = np.maximum.accumulate(ends)
    ended_at = np.sort(ends)
    while at < ask.most_seconds and not why:
        at += 1.0
        until = int(np.searchsorted(order, at, side="right"))
        rows = slice(told, until)
        latency = (ends - arrivals)[rows]
        nothing = np.zeros(latency.size)
        judge.add(
            Answers(
                latency_seconds=latency,
                failed=failed[rows],
                ttft_seconds=nothing,
                inter_token_seconds=nothing,
            )
        )
        told = until
        sent = int(np.searchsorted(arrivals, at))
        why = judge.failed or backlog.add(
            at=at, sent=sent, ended=int(np.searchsorted(ended_at, at))
        )
        saturated = bool(why) and not judge.failed
        if not why and ask.aim is not Purpose.EXPLORE and at >= ask.least_seconds and judge.passed:
            why = "passed"
    outcome = Outcome.INCONCLUSIVE
    if why:
        outcome = Outcome.PASS if why == "passed" else Outcome.FAIL
    return Probe(
        per_second=ask.per_second,
        aim=ask.aim,
        outcome=outcome,
        holds=judge.holds_so_far,
        seconds=at,
        reason=why,
        saturated=saturated,
        requests=told,
    )


def search(
    queue: Queue, goal: SearchConfig, rng: np.random.Generator
) -> tuple[Capacity, list[Probe]]:
    """A whole search."""
    probes: list[Probe] = []
    while True:
        step = next_step(goal, probes)
        if isinstance(step, Capacity):
            return step, probes
        probes.append(send(queue, goal.slos, step, rng))
