"""Sentences and figures shared by verdicts of several kinds."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from vllm_rollout.model.load_result import RequestOutcome, RequestRecord
from vllm_rollout.model.units import format_share
from vllm_rollout.model.verdict import Outcome, Verdict

FIX_FAILURES = (
    "See how the requests failed and what the replicas logged at that time; fix that before the "
    "next attempt."
)
FIX_SLOWNESS = (
    "See whether the time goes into waiting (the server's queue) or into generating, and give the "
    "deployment more replicas or faster ones."
)
FIX_MISSES = (
    "Begin with the limit that most requests missed: a late first token is waiting, slow tokens "
    "are a batch too large for the GPUs."
)


def worth_text(block: int) -> str:
    """The clause that dependent requests get."""
    return f"{block:,} of them are worth one independent request"


def may_share_text(burst: int) -> str:
    """The clause for bursts that have not come."""
    return f"up to {burst:,} requests in a row may share one cause"


def bound_text(bound: float) -> str:
    """A share to four digits, so that a bound just inside the limit does not read like it."""
    return format_share(float(f"{bound:.4g}"))


_LONGEST_ERROR = 160
_BY_STATUS = {
    401: "Give the load a key that the server accepts: `VLLM_ROLLOUT_API_KEY`.",
    403: "Give the load a key that may use this model: `VLLM_ROLLOUT_API_KEY`.",
    404: "Check the address, and that the server serves the model under this name "
    "(`--served-model-name`).",
    429: "Raise the rate limit that the server or its gateway has for the load's key, or ask for "
    "less (`load.rate`).",
    502: "See why the gateway found no server that answers: replicas that restarted or were not "
    "ready, or its own limits on connections and time.",
    503: "See which queue was full or which replicas were not ready at that time, and give the "
    "deployment more replicas.",
    504: "See why the gateway gave up waiting: its time limit, or replicas too few or too slow.",
}
_REFUSED = (
    "Make the load's requests such as the server takes: prompts and `max_tokens` that fit its "
    "`--max-model-len`, and the API that it serves."
)
_BY_OUTCOME = {
    RequestOutcome.TIMEOUT: "See whether the time goes into waiting or into generating, and give "
    "the deployment more replicas or faster ones; `load.timeout` says how long an answer may take.",
    RequestOutcome.CONNECTION: "See whether replicas restarted at that time, and what lies between "
    "them and the load: Service, gateway, certificates.",
    RequestOutcome.MALFORMED: "Send one such request with `curl -N` and compare the answer with "
    "the OpenAI API: something else may answer in the server's place.",
    RequestOutcome.TRUNCATED: "See what cuts answers off before their end: replicas that end, or "
    "a gateway's limit on time or size.",
}


def with_failures(
    verdict: Verdict, requests: Sequence[RequestRecord], *, alone: Callable[[], Verdict]
) -> Verdict:
    """Return a verdict on a load with what failed most in its reason, in the server's words.

    `alone` gives the verdict on the answered requests alone: the remedy of a fail is that of the
    failures, and where those fail too, theirs as well.
    """
    failed = [request for request in requests if not request.ok]
    if verdict.passed or not failed:
        return verdict
    [(kind, count)] = Counter(request.failure_kind for request in failed).most_common(1)
    alike = [request for request in failed if request.failure_kind == kind]
    [(error, _)] = Counter(request.error for request in alike).most_common(1)
    words = " ".join(error.split())[:_LONGEST_ERROR]
    reason = f"{verdict.reason}; {count:,} of {len(failed):,} failed requests: {kind}"
    reason += f", “{words}”" if words else ""
    if verdict.outcome is not Outcome.FAIL:
        return replace(verdict, reason=reason)
    answered = alone()
    too = f" {answered.remedy}" if answered.outcome is Outcome.FAIL else ""
    return replace(verdict, reason=reason, remedy=_fix(alike[0]) + too)


def _fix(failed: RequestRecord) -> str:
    if failed.outcome is not RequestOutcome.HTTP_ERROR:
        return _BY_OUTCOME.get(failed.outcome, FIX_FAILURES)
    refused = 400 <= failed.status < 500
    return _BY_STATUS.get(failed.status, _REFUSED if refused else FIX_FAILURES)
