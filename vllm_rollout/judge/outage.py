"""Outage in a load: a fact and not a rate, so it is a fail without statistics.

It is one where every request fails for a stated time, or where every connection does for a shorter
one: nothing listens any more. Either takes a number of requests in a row besides. An answer ends
it, and so does a stream that had begun and took too long. A refusal (429, say) does not: a gateway
without a server behind it refuses everything. A request that the generator did not send shows
nothing of the deployment, and nor does a refused key with which none was answered before.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from vllm_rollout.model.load_result import RequestOutcome, RequestRecord
from vllm_rollout.model.units import format_value
from vllm_rollout.model.verdict import Outcome, Verdict

_KEY_REFUSED = frozenset({401, 403, 407})
_REFUSALS = _KEY_REFUSED | {400, 413, 422, 429}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutageLimits:
    """An outage is `requests` failures in a row, due over `failing_seconds` or more.

    `refused_seconds` suffice where all of them failed for want of a connection.
    """

    failing_seconds: float
    refused_seconds: float
    requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """Requests in a row that failed: due from `began` on, in seconds since the load's zero.

    `refused` is whether nothing listened in the end, `refusals` whether all were refusals of
    something that did.
    """

    began: float
    seconds: float
    requests: int
    refused: bool
    refusals: bool
    last: RequestRecord

    def reason(self, started_at: float | None = None) -> str:
        """Return when it began, how many failed in a row, and the last error.

        `started_at` is the load's zero as Unix time.
        """
        clock = ""
        if started_at is not None:
            clock = f"{datetime.fromtimestamp(started_at + self.began, UTC):%H:%M:%S} UTC, "
        what = "every request was refused" if self.refusals else "every request failed"
        if self.refused:
            what = "nothing listened"
        ended = "were refused" if self.refusals else "failed"
        began, seconds = (format_value(round(s, 1), "s") for s in (self.began, self.seconds))
        return (
            f"an outage: {what} from {clock}{began} into the load. {self.requests:,} requests in "
            f"a row {ended} within {seconds}, the last with: {self.last.error or self.last.outcome}"
        )


class OutageWatch:
    """Finds the first outage in the requests of a load, taken in the order of sending."""

    def __init__(self, limits: OutageLimits) -> None:
        self._limits = limits
        self._answered = False
        self._refusals = True
        """Whether the requests of the run that goes on were all refused."""
        self._failing: tuple[float, int] | None = None
        self._refused: tuple[float, int] | None = None
        self.found: Outage | None = None

    @property
    def suspected(self) -> bool:
        """True while the latest requests failed, for too short a time to be an outage yet."""
        return self.found is None and self._failing is not None

    def take(self, record: RequestRecord) -> None:
        """Take in the next request; nothing, once an outage was found."""
        if self.found or record.outcome is RequestOutcome.UNSENT:
            return
        refused = record.outcome is RequestOutcome.CONNECTION
        if record.status in _KEY_REFUSED and not (self._answered or self._failing):
            return
        if _answered(record):
            self._answered, self._failing, self._refusals = True, None, True
        else:
            self._failing = _longer(self._failing, record.intended)
            self._refusals = self._refusals and record.status in _REFUSALS
        self._refused = _longer(self._refused, record.intended) if refused else None
        nobody = self._lasts(self._refused, record, self._limits.refused_seconds)
        if self._failing and (
            nobody or self._lasts(self._failing, record, self._limits.failing_seconds)
        ):
            began, count = self._failing
            self.found = Outage(
                began=began,
                seconds=record.intended - began,
                requests=count,
                refused=nobody,
                refusals=self._refusals,
                last=record,
            )

    def _lasts(self, run: tuple[float, int] | None, record: RequestRecord, seconds: float) -> bool:
        """Return whether a run of failures, of which `record` is the last, is an outage."""
        return (
            run is not None
            and record.intended - run[0] >= seconds
            and run[1] >= self._limits.requests
        )


def find_outage(records: Iterable[RequestRecord], limits: OutageLimits) -> Outage | None:
    """Return the first outage in the requests of a load, in the order of sending."""
    watch = OutageWatch(limits)
    for record in records:
        watch.take(record)
    return watch.found


def outage_verdict(outage: Outage, *, started_at: float | None, n: int) -> Verdict:
    """The fail of every gate on a load of `n` requests in which there was an `outage`."""
    remedy = "See why the servers stopped at that time: their last log lines, restarts, memory."
    if outage.refusals:
        remedy = "See what refuses them: a gateway without a server, or a limit below the rate."
    return Verdict(outcome=Outcome.FAIL, reason=outage.reason(started_at), n=n, remedy=remedy)


def _answered(record: RequestRecord) -> bool:
    begun = record.first_token is not None or record.stalled_seconds > 0
    slow = record.outcome is RequestOutcome.TIMEOUT and begun
    return record.ok or slow


def _longer(run: tuple[float, int] | None, intended: float) -> tuple[float, int]:
    """The run of failures, its begin and its length, with one more."""
    return (intended, 1) if run is None else (run[0], run[1] + 1)
