"""Retry policy for the API server: urllib3's, plus any 429 or 503, also for POST.

In a module of its own, because urllib3 is only loaded with the Kubernetes client.
"""

from urllib3 import Retry

_BUSY = (429, 503)
_TIMES = 3
_LONGEST_SECONDS = 30


class ThrottlingRetry(Retry):
    """An overloaded API server, or a balancer with none behind it, refuses a request before it does
    anything for it: then any request is sent again, one that creates something too. When is for the
    server to say; where it does not, after half a second, one and two."""

    def is_retry(self, method: str, status_code: int, has_retry_after: bool = False) -> bool:
        """Return True if the answer asks for a retry."""
        if status_code in _BUSY and self.total:
            return True
        return super().is_retry(method, status_code, has_retry_after)

    def get_backoff_time(self) -> float:
        """Seconds to the next attempt; none after what was no answer."""
        refusals = [each for each in self.history if each.status in _BUSY]
        if not refusals or self.history[-1].status not in _BUSY:
            return super().get_backoff_time()
        return float(2 ** (len(refusals) - 2))


def throttling_retry() -> ThrottlingRetry:
    """Three times at most, and no later than in half a minute."""
    return ThrottlingRetry(_TIMES, retry_after_max=_LONGEST_SECONDS)
