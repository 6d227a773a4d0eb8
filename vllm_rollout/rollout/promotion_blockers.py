"""Promotion blockers besides gates: soak, deployment windows, and nobody on call."""

import math
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from http import HTTPStatus

from vllm_rollout.http_client import HttpClient, HttpError
from vllm_rollout.judge.soak import soak_text
from vllm_rollout.judge.windows import SEARCH, closed_because, next_opening
from vllm_rollout.model.deployment import Deployment, Revision
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.text import host_of
from vllm_rollout.model.units import format_duration
from vllm_rollout.observe.calendar import events_between
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.policy import OnCall, Policy, Windows
from vllm_rollout.rollout.run import Clock
from vllm_rollout.rollout.soak_samples import soak_of, soak_remedy
from vllm_rollout.rollout.user_command import UserCommandError, run_user_command

_LOOK_EVERY = timedelta(seconds=30)
_ASK_AGAIN = timedelta(hours=1)
_MOMENT = timedelta(minutes=1)
_LONGEST_ANSWER = 200


def reasons_to_wait(
    platform: ReleaseReader,
    policy: Policy,
    source: Deployment,
    target: Deployment,
    revision: Revision,
    now: datetime,
) -> Iterator[str]:
    """Yield why `revision` of `source` may not go to `target` at `now`.

    Raises:
        UnreachableError: the state of the soak cannot be read.
    """
    soak = soak_of(platform, policy, source, revision, now)
    if soak is not None and not soak.over:
        yield (
            f"the soak is not over: revision {revision.number} of {source.environment}: "
            f"{soak_text(soak)}. {soak_remedy(policy, source)}"
        )
    if target.environment == policy.order[-1] and (reason := closed_now(policy.windows, now)):
        yield f"outside the deployment windows ({reason}); {opening_text(policy.windows, now)}"


def closed_now(windows: Windows, now: datetime) -> str:
    """Return why production may not be deployed to at `now`, by its calendar too; "" if it may.

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
    """Return when production may be deployed to next; None if the calendar cannot be read."""
    try:
        events = events_between(windows, now, now + SEARCH) if windows.enforce else ()
    except UnreachableError:
        return None
    return next_opening(windows, now, events)


def opening_text(windows: Windows, now: datetime) -> str:
    """Return when the windows open next, as text."""
    opening = opens_next(windows, now)
    if opening is None:
        return "when the next opens is not known"
    return f"the next opens {opening:%A %Y-%m-%d %H:%M %Z}"


def nobody_on_call(rules: OnCall) -> str:
    """Return why nobody is taken to be on call; "" if somebody is, or the policy asks for nobody.

    Each configured check must confirm it; one that does not answer does not.
    """
    seconds = rules.timeout.total_seconds()
    reasons = []
    if rules.command is not None:
        reasons.append(_by_command(rules.command, seconds))
    if rules.url is not None:
        reasons.append(_by_url(rules.url, seconds))
    return "; ".join(reason for reason in reasons if reason)


def wait_until_open(
    windows: Windows,
    clock: Clock,
    report: Callable[[str], None],
    begin: Callable[[str], None] = lambda _why: None,
) -> None:
    """Return when production may be deployed to and somebody is on call, if the policy asks.

    `begin` is called once with the reason, if there is one to wait for, and `report` every half
    minute, with the time left. Nothing is held meanwhile.
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
        report(f"waiting for a deployment window ({reason}): {when}, in {left}")
        clock.sleep(max(timedelta(seconds=1), min(again - now, _LOOK_EVERY)))


def _by_command(words: tuple[str, ...], seconds: float) -> str:
    try:
        status, printed = run_user_command(words, timeout_seconds=seconds)
    except UserCommandError as error:
        return f"whether anybody is on call is unknown: {error}"
    if status == 0:
        return ""
    last = printed.splitlines()[-1][:_LONGEST_ANSWER] if printed else ""
    return f"nobody is on call: {words[0]!r} ended with {status} {last}".rstrip()


def _by_url(url: str, seconds: float) -> str:
    try:
        with HttpClient(max_bytes=0, proxy=True) as client:
            status = client.get(url, timeout_seconds=seconds, read=False).status
    except HttpError as error:
        why = error.reason.replace(url, host_of(url))
        return f"whether anybody is on call is unknown: {host_of(url)}: {why}"
    answered = f"nobody is on call: {host_of(url)} answered {status}"
    return "" if status == HTTPStatus.OK else answered
