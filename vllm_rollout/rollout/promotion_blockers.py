"""What a promotion waits for although every gate has passed: the soak, a deployment window."""

import math
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from vllm_rollout.judge.soak import soak_text
from vllm_rollout.judge.windows import SEARCH, closed_because, next_opening
from vllm_rollout.model.deployment import Deployment, Revision
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.units import format_duration
from vllm_rollout.observe.calendar import events_between
from vllm_rollout.platform.base import Platform
from vllm_rollout.policy import Policy, Windows
from vllm_rollout.rollout.clock import Clock
from vllm_rollout.rollout.on_call import nobody_on_call
from vllm_rollout.rollout.soak_samples import soak_of, soak_remedy

_LOOK_EVERY = timedelta(seconds=30)
_ASK_AGAIN = timedelta(hours=1)
_MOMENT = timedelta(minutes=1)


def reasons_to_wait(
    platform: Platform,
    policy: Policy,
    source: Deployment,
    target: Deployment,
    revision: Revision,
    now: datetime,
) -> Iterator[str]:
    """Why `revision` of `source` may not go to `target` at `now`.

    Raises:
        UnreachableError: what is known of the soak cannot be had.
    """
    soak = soak_of(platform, policy, source, revision, now)
    if soak is not None and not soak.over:
        nobody = "nobody has looked, " if not soak.seen else ""
        yield (
            f"the soak is not over: revision {revision.number} of {source.environment}: {nobody}"
            f"{soak_text(soak)}. {soak_remedy(policy, source)}"
        )
    if target.environment == policy.order[-1] and (reason := closed_now(policy.windows, now)):
        yield f"outside the deployment windows ({reason}); {opening_text(policy.windows, now)}"


def closed_now(windows: Windows, now: datetime) -> str:
    """Why production may not be deployed to at `now`, its calendar read; "" when it may.

    A calendar that cannot be read closes it.
    """
    if not windows.enforce:
        return ""
    if reason := closed_because(windows, now):
        return reason
    try:
        return closed_because(windows, now, events_between(windows, now, now + _MOMENT))
    except UnreachableError as error:
        return f"{error}. {error.remedy}"


def opens_next(windows: Windows, now: datetime) -> datetime | None:
    """When production may be deployed to next; None where the calendar does not tell."""
    try:
        events = events_between(windows, now, now + SEARCH) if windows.enforce else ()
    except UnreachableError:
        return None
    return next_opening(windows, now, events)


def opening_text(windows: Windows, now: datetime) -> str:
    """When the windows open next, for people."""
    opening = opens_next(windows, now)
    if opening is None:
        return "when the next opens is not known"
    return f"the next opens {opening:%A %Y-%m-%d %H:%M %Z}"


def wait_until_open(
    windows: Windows,
    clock: Clock,
    tell: Callable[[str], None],
    begin: Callable[[str], None] = lambda _why: None,
) -> None:
    """Return when production may be deployed to and somebody is on call, if anybody is asked.

    `begin` is told once what is waited for, if anything is, and `tell` every half minute, with the
    time left. Nothing is held meanwhile.
    """
    waits = False
    opening: datetime | None = None
    again = clock.now()
    while True:
        now = clock.now()
        if now >= again:
            closed = closed_now(windows, now)
            reason = closed or nobody_on_call(windows.on_call)
            if not reason:
                return
            opening = opens_next(windows, now) if closed else None
            # A calendar may change meanwhile, but need not be fetched twice a minute.
            again = min(opening or now + _LOOK_EVERY, now + _ASK_AGAIN)
        seconds = math.ceil(((opening or again) - now).total_seconds())
        left = format_duration(timedelta(seconds=seconds))
        when = "asked again" if opening is None else f"opens {opening:%A %Y-%m-%d %H:%M %Z}"
        if not waits:
            begin(f"waiting for a deployment window ({reason}): {when}")
        waits = True
        tell(f"waiting for a deployment window ({reason}): {when}, in {left}")
        clock.sleep(max(timedelta(seconds=1), min(again - now, _LOOK_EVERY)))
