"""The canary as one more upstream of another release's router."""

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_rollout.platform.base import Weights
from vllm_rollout.platform.local.proxy import Upstream


def canary_key(release: str) -> str:
    """The name, in the state file, of the canary of the release that is called `release` there."""
    return f"{release}-canary"


@dataclass(eq=False)
class Side:
    """One of the two sides as a whole. One that has nobody to serve it has no `url`."""

    url: str = ""
    open_requests: int = 0


_NOBODY = Side()


def with_canary(
    own: Mapping[Upstream, float], weights: Weights, canary: Side | None
) -> dict[Upstream, float]:
    """The weights of the own replicas and of the canary's router, each side in its share.

    A side that has nobody to serve it keeps its share, whose requests fail: to give it to the
    other, which was not sized for it, would hide the failure and might make another.
    """
    if canary is None or not weights.canary:
        return dict(own)
    whole = sum(own.values())
    divided: dict[Upstream, float] = {
        each: weight * weights.stable / whole for each, weight in own.items()
    }
    if not own:
        divided[_NOBODY] = weights.stable
    divided[canary] = weights.canary
    return divided
