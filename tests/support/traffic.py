"""A ramp by traffic in the simulated world: what it does, and what it leaves."""

from support.simulated import ALL_STABLE
from support.world import PRODUCTION, STAGING, World

from vllm_rollout.model.observation import ProbeSample

CANARY = PRODUCTION.canary
CLIMB = [
    "apply production canary 1/1",
    "weights production 7500:2500",
    "apply production canary 4/4",
    "weights production 0:10000",
]
UP = [*CLIMB, "apply production 4/4", "weights production 1:0", "uninstall production canary"]


def old(world: World) -> str:
    return world.platform.build(PRODUCTION, {"version": 1}).digest


def new(world: World) -> str:
    return world.platform.build(STAGING, {"version": 2}).digest


def answers(*, failures: int = 0, seconds: float = 0.1, total: int = 10) -> ProbeSample:
    latencies = (seconds,) * (total - failures)
    return ProbeSample(
        total=total, failures=failures, latencies_seconds=latencies, healthy=failures < total
    )


def as_before(world: World) -> bool:
    """Whether users have what they had, and nothing else is left."""
    return (
        world.platform.serving(PRODUCTION) == (old(world), 4, 4)
        and world.platform.weights(PRODUCTION) == ALL_STABLE
        and world.platform.history(CANARY) == []
    )
