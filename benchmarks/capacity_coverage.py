"""How often the interval of a capacity search covers the true capacity, and what the search takes.

Searches queues whose capacity is known: by Erlang's formula where service is exponential, by a long
simulation where it is constant. Run: python benchmarks/capacity_coverage.py [--runs 40]
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.queueing import Queue, search

from vllm_rollout.capacity.model import SearchConfig
from vllm_rollout.capacity.rate_probe import Slos

SERVICES = {
    "M/M/1, 25 ms, P95 < 3 s": (Queue(1, 0.025), 3.0),
    "M/M/4, 100 ms, P95 < 0.5 s": (Queue(4, 0.1), 0.5),
    "M/M/32, 1 s, P95 < 3.5 s": (Queue(32, 1.0), 3.5),
    "M/D/4, 100 ms, P95 < 0.3 s": (Queue(4, 0.1, "constant"), 0.3),
    "M/D/64, 1 s, P95 < 3 s": (Queue(64, 1.0, "constant"), 3.0),
}


def main() -> None:
    """Print a row for each service."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    runs = parser.parse_args().runs
    print("service | capacity | lower end too high | upper end too low | probes | seconds | width")
    for name, (queue, limit) in SERVICES.items():
        goal = SearchConfig(
            slos=Slos(latency_seconds=limit, error_limit=0.01),
            start_per_second=10,
            max_per_second=1000,
            precision=0.1,
            confidence=0.95,
            most_probes=16,
            limit_seconds=limit,
            probe_seconds=10,
            proof_seconds=300,
        )
        truth = queue.capacity(limit)
        found = [search(queue, goal, np.random.default_rng(seed)) for seed in range(runs)]
        lower = np.array([capacity.lower for capacity, _ in found])
        upper = np.array([capacity.upper for capacity, _ in found])
        both = (lower > 0) & np.isfinite(upper)
        width = f"{np.median(upper[both] / lower[both]):.2f}" if both.any() else "no lower end"
        print(
            f"{name} | {truth:.1f}/s | {np.mean(lower > truth):.1%} | {np.mean(upper < truth):.1%}"
            f" | {np.mean([len(probes) for _, probes in found]):.1f}"
            f" | {np.mean([sum(p.seconds for p in probes) for _, probes in found]):.0f} | {width}",
            flush=True,
        )


if __name__ == "__main__":
    main()
