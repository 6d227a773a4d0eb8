"""Whether somebody is on call: asked right before production is changed, by a command or a URL."""

from vllm_rollout.policy import OnCall
from vllm_rollout.rollout.user_command import UserCommandError, run_user_command

_LONGEST_ANSWER = 200


def nobody_on_call(rules: OnCall) -> str:
    """Why it must be taken that nobody is on call; "" if somebody is, or nobody is asked.

    Each way that is configured must say so; one that does not answer does not.
    """
    seconds = rules.timeout.total_seconds()
    reasons = []
    if rules.command is not None:
        reasons.append(_by_command(rules.command, seconds))
    if rules.url is not None:
        reasons.append(_by_url(rules.url, seconds))
    return "; ".join(reason for reason in reasons if reason)


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
    import httpx

    try:
        with httpx.Client(timeout=seconds) as client:
            status = client.get(url).status_code
    except httpx.HTTPError as error:
        return f"whether anybody is on call is unknown: {url}: {type(error).__name__}"
    return "" if status == httpx.codes.OK else f"nobody is on call: {url} answered {status}"
