"""The command line of a load without the suite around it, and the plan that it asks for."""

import math
from pathlib import Path
from typing import Any

from locust.argument_parser import LocustArgumentParser

from vllm_rollout.load.trace import read_trace
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.load_plan import ARRIVALS, LoadPlan, RateSegment, shaped_seconds

_AFTER_THE_LAST_SECONDS = 0.001


def add_options(parser: LocustArgumentParser) -> None:
    """Add the options of a load plan."""
    group = parser.add_argument_group(
        "Load plan", "What is sent, how often, and how long it may take."
    )
    group.add_argument("--model", default="", help="Model to ask, e.g. llama-2-7b")
    group.add_argument("--rate", type=float, default=10.0, help="Requests per second")
    group.add_argument(
        "--arrivals",
        choices=ARRIVALS,
        default="poisson",
        help="poisson: at random; constant: evenly spaced; closed: as many users as --users says "
        "each wait for an answer before they ask again",
    )
    group.add_argument(
        "--shape",
        default="",
        metavar="SECONDS:RATE,…",
        help="Stretches of other rates in place of --rate and --run-time: 60:10,30:10-50,60:50 is "
        "a minute at 10 requests per second, a ramp to 50, and a minute at 50",
    )
    group.add_argument("--ramp-to", type=float, default=None, help="Rate at the end of the run")
    group.add_argument("--trace", default="", metavar="FILE", help="Recorded requests to replay")
    group.add_argument("--speed", type=float, default=1.0, help="How many times as fast")
    group.add_argument("--timeout", type=float, default=30.0, help="Seconds a request may take")
    group.add_argument("--prompt", default="Write one sentence about the sea.", help="Prompt")
    group.add_argument("--max-tokens", type=int, default=64, help="Tokens to ask for at most")
    group.add_argument("--no-stream", action="store_true", help="Ask for the answer in one piece")
    group.add_argument("--seed", type=int, default=1, help="Seed of the schedule")
    group.add_argument("--results", default="", metavar="DIR", help="Log every request here")
    group.add_argument(
        "--plan",
        default="",
        metavar="FILE",
        help="Load plan as JSON, in place of the options above",
    )
    group.add_argument(
        "--relay",
        action="store_true",
        help="For master and workers without a folder in common: bring the workers' logs to the "
        "master, which gives them out on 127.0.0.1",
    )
    group.add_argument("--relay-port", type=int, default=8089, help="Port of the master's logs")
    group.add_argument(
        "--unattended",
        type=float,
        default=30.0,
        help="Seconds after which a master with --relay ends when nobody asks for its logs",
    )
    group.add_argument(
        "--end-with-parent",
        type=int,
        metavar="PID",
        help="End when the process that started this one, PID, is gone",
    )


def plan_of(options: Any, *, host: str | None, duration_seconds: float) -> LoadPlan:
    """The plan that the options ask for.

    Raises:
        UsageError: they make no plan.
    """
    if options.plan:
        try:
            return LoadPlan.from_json(Path(options.plan).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read the load plan: {error}") from error
    trace = read_trace(Path(options.trace), speed=options.speed) if options.trace else ()
    if trace:
        duration_seconds = min(duration_seconds, trace[-1].at + _AFTER_THE_LAST_SECONDS)
    shape: tuple[RateSegment, ...] = ()
    if options.ramp_to is not None:
        if not math.isfinite(duration_seconds):
            raise UsageError("a ramp needs an end", remedy="Give --run-time.")
        shape = (RateSegment(seconds=duration_seconds, start=options.rate, end=options.ramp_to),)
    if options.shape:
        if shape:
            raise UsageError("--shape and --ramp-to exclude each other", remedy="Give one of them.")
        shape = _shape(options.shape)
        duration_seconds = shaped_seconds(shape)
    closed = options.arrivals == "closed"
    return LoadPlan(
        base_url=host or "",
        model=options.model,
        rate_per_second=options.rate,
        duration_seconds=duration_seconds,
        arrivals=options.arrivals,
        users=(options.num_users or 1) if closed else 0,
        shape=shape,
        trace=trace,
        timeout_seconds=options.timeout,
        prompt=options.prompt,
        max_tokens=options.max_tokens,
        stream=not options.no_stream,
        seed=options.seed,
    )


def _shape(text: str) -> tuple[RateSegment, ...]:
    """The stretches of `SECONDS:RATE[-RATE],…`."""
    stretches = []
    for stretch in text.split(","):
        seconds, _, rates = stretch.partition(":")
        start, _, end = rates.partition("-")
        try:
            stretches.append(
                RateSegment(seconds=float(seconds), start=float(start), end=float(end or start))
            )
        except ValueError as error:
            raise UsageError(
                f"--shape: {stretch!r} is no SECONDS:RATE or SECONDS:RATE-RATE",
                remedy="For example --shape 60:10,30:10-50,60:50.",
            ) from error
    return tuple(stretches)
