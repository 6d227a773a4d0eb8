"""What a promotion waits for although every gate has passed: the soak, a deployment window."""

import math
from collections.abc import Iterator
from datetime import datetime, timedelta

from vllm_rollout.deployment import Revision
from vllm_rollout.policy import Policy
from vllm_rollout.release.windows import closed_because, next_opening
from vllm_rollout.units import format_duration


def soak_left(policy: Policy, environment: str, revision: Revision, now: datetime) -> timedelta:
    """How much longer `revision` must stand in `environment`, in whole seconds; 0 if not at all."""
    soak = policy.environments[environment].soak
    if soak is None:
        return timedelta()
    left = revision.created + soak.minimum - now
    return timedelta(seconds=max(0, math.ceil(left.total_seconds())))


def reasons_to_wait(
    policy: Policy, source: str, target: str, revision: Revision, now: datetime
) -> Iterator[str]:
    """Why `revision` of the environment `source` may not go to `target` at `now`."""
    soak = policy.environments[source].soak
    if soak is not None and (left := soak_left(policy, source, revision, now)):
        yield (
            f"the soak is not over: revision {revision.number} must stand in {source} for "
            f"{format_duration(soak.minimum)}, {format_duration(left)} are left"
        )
    if target == policy.order[-1] and (reason := closed_because(policy.windows, now)):
        opening = next_opening(policy.windows, now)
        when = f"{opening:%A %Y-%m-%d %H:%M %Z}" if opening else "not within a year"
        yield f"outside the deployment windows ({reason}); the next opens {when}"
