"""Promotion blockers besides gates: soak, deployment windows, and nobody on call."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING

from vllm_rollout.http_client import HttpClient, HttpError
from vllm_rollout.judge.soak import soak_text
from vllm_rollout.judge.windows import SEARCH, closed_because, next_closing, next_opening
from vllm_rollout.model.calendar_event import Event
from vllm_rollout.model.deployment import Deployment, Revision
from vllm_rollout.model.errors import UnreachableError, UsageError
from vllm_rollout.model.text import public_address
from vllm_rollout.model.units import format_duration
from vllm_rollout.observe.calendar import events_between
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.policy import OnCall, Policy, Windows
from vllm_rollout.policy.notifications import MessageKind
from vllm_rollout.rollout.run import Clock, Run, RunLog
from vllm_rollout.rollout.soak_samples import soak_of, soak_remedy
from vllm_rollout.rollout.user_command import UserCommandError, run_user_command
from vllm_rollout.variables import secret_from

if TYPE_CHECKING:
    from vllm_rollout.rollout.watcher import WatchEnd

_LOOK_EVERY = timedelta(seconds=30)
_ASK_AGAIN = timedelta(hours=1)
_SOON = timedelta(minutes=5)
_MOMENT = timedelta(minutes=1)
_LONGEST_ANSWER = 200
_REMEDY = "Shorten the ramp, widen the windows, or set windows.whole_ramp to off."


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
    if target.environment == policy.order[-1] and (reason := closed_to_ramp(policy, now)):
        yield f"outside the deployment windows ({reason}); {opening_text(policy, now)}"


def closed_at(windows: Windows, now: datetime) -> tuple[str, bool]:
    """Return why production may not be deployed to at `now`, by its calendar too, "" if it may;
    and whether that is known: a calendar that cannot be read closes it."""
    if not windows.enforce:
        return "", True
    if reason := closed_because(windows, now):
        return reason, True
    try:
        return closed_because(windows, now, events_between(windows, now, now + _MOMENT)), True
    except UnreachableError as error:
        return f"{error}. {error.remedy}", False


def closed_to_ramp(policy: Policy, now: datetime) -> str:
    """Return why no ramp may begin at `now`; "" if one may.

    Production is closed, or would be before the ramp is over. A calendar that cannot be read closes
    it.
    """
    windows, needed = policy.windows, _needed(policy)
    end = now + max(needed, _MOMENT)
    if not windows.enforce:
        return ""
    if reason := closed_because(windows, now):
        return reason
    try:
        closing = next_closing(windows, now, end, events_between(windows, now, end))
    except UnreachableError as error:
        return f"{error}. {error.remedy}"
    if closing is None:
        return ""
    moment, why = closing
    if moment <= now:
        return why
    if not needed:
        return ""
    return (
        f"the ramp takes {format_duration(needed)} at least (holds, load and watch), and "
        f"production closes {moment:%A %Y-%m-%d %H:%M %Z} ({why})"
    )


def opens_next(windows: Windows, now: datetime) -> datetime | None:
    """Return when production may be deployed to next; None if it is not known."""
    events = _events_ahead(windows, now)
    return None if events is None else next_opening(windows, now, events)


def opening_text(policy: Policy, now: datetime) -> str:
    """Return when the windows open next for long enough, as text."""
    opening, never = _opens_for_a_ramp(policy, now)
    if opening is not None:
        return f"the next opens {opening:%A %Y-%m-%d %H:%M %Z}"
    if never:
        return f"no window is so long. {_REMEDY}"
    return "when the next opens is not known"


def _opens_for_a_ramp(policy: Policy, now: datetime) -> tuple[datetime | None, bool]:
    """Return when a ramp fits into the windows next, None if it is not known or never does; and
    whether they do open, and never for long enough."""
    windows, needed = policy.windows, _needed(policy)
    events = _events_ahead(windows, now)
    if events is None:
        return None, False
    opening = next_opening(windows, now, events, lasting=needed)
    never = opening is None and bool(needed) and next_opening(windows, now, events) is not None
    return opening, never


def _events_ahead(windows: Windows, now: datetime) -> Sequence[Event] | None:
    """Return the calendar's events in the time that is searched; None if they cannot be had."""
    try:
        return events_between(windows, now, now + SEARCH) if windows.enforce else ()
    except UnreachableError:
        return None


def _needed(policy: Policy) -> timedelta:
    """Return for how long production must be open when a ramp begins."""
    return policy.ramp_time if policy.windows.whole_ramp else timedelta()


def until_open(
    run: Run, log: RunLog, end: "WatchEnd", watch: "Callable[[timedelta], WatchEnd]"
) -> "WatchEnd":
    """Return the `end` of a step's hold once production is open for the next step.

    Where it is closed by then, the end has fired, or `watch` watches on until it opens, as the
    policy says; where that is not known, it watches on. In an emergency nothing is asked.
    """
    windows = run.policy.windows
    held = False
    while run.serves_users and run.emergency is None and not (end.fired or end.unobservable):
        now = log.now()
        reason, known = closed_at(windows, now)
        if not reason:
            break
        if known and windows.closed_in_ramp == "go_back":
            why = f"production is closed before the next step of the ramp ({reason})"
            return replace(end, fired=f"{why}, and windows.closed_in_ramp is go_back")
        opening = opens_next(windows, now)
        if not held:
            when = f"until {opening:%A %Y-%m-%d %H:%M %Z}" if opening else "until it opens"
            why = f"the ramp of {run.target} is held where it is, {when}: production is closed"
            log.log_step(f"{why} before its next step", reason)
            log.notify(MessageKind.WAITING, f"{why} before its next step ({reason})")
        held = True
        # A calendar may change meanwhile, but need not be fetched at each observation.
        end = watch(min(opening - now, _ASK_AGAIN) if opening else _SOON)
    return end


def nobody_on_call(rules: OnCall) -> str:
    """Return why nobody is taken to be on call; "" if somebody is, or the policy asks for nobody.

    Each configured check must confirm it; one that does not answer does not.
    """
    seconds = rules.timeout.total_seconds()
    reasons = []
    if rules.command is not None:
        reasons.append(_by_command(rules.command, seconds))
    if rules.url_env is not None or rules.url_file is not None:
        try:
            url = secret_from(rules.url_env, rules.url_file, "the URL to ask")
            reasons.append(_by_url(url, seconds))
        except UsageError as error:
            reasons.append(f"whether anybody is on call is unknown: {error}")
    elif rules.url is not None:
        reasons.append(_by_url(rules.url, seconds))
    return "; ".join(reason for reason in reasons if reason)


def wait_until_open(
    policy: Policy,
    clock: Clock,
    report: Callable[[str], None],
    begin: Callable[[str], None] = lambda _why: None,
) -> None:
    """Return when a ramp may begin and somebody is on call, if the policy asks.

    `begin` is called once with the reason, if there is one to wait for, and `report` every half
    minute, with the time left. Nothing is held meanwhile.

    Raises:
        UsageError: no window is long enough for a ramp.
    """
    windows, waits = policy.windows, False
    opening: datetime | None = None
    again = clock.now()
    while True:
        now = clock.now()
        if now >= again:
            closed = closed_to_ramp(policy, now)
            reason = closed or nobody_on_call(windows.on_call)
            if not reason:
                return
            opening, never = _opens_for_a_ramp(policy, now) if closed else (None, False)
            if never:
                raise UsageError(f"{closed}, and no window is so long", remedy=_REMEDY)
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
    where = public_address(url)
    try:
        with HttpClient(max_bytes=0, proxy=True) as client:
            status = client.get(url, timeout_seconds=seconds, read=False).status
    except HttpError as error:
        return f"whether anybody is on call is unknown: {where}: {error.reason}"
    return "" if status == HTTPStatus.OK else f"nobody is on call: {where} answered {status}"
