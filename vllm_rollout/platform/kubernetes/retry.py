"""Retry policy for the API server: urllib3's, plus any 429 with Retry-After, also for POST.

In a module of its own, because urllib3 is only loaded with the Kubernetes client.
"""

from urllib3 import Retry

_TOO_MANY = 429
_TIMES = 3
_LONGEST_SECONDS = 30


class ThrottlingRetry(Retry):
    """An overloaded API server refuses a request before it does anything for it, and says when to
    come back: then any request is sent again, one that creates something too."""

    def is_retry(self, method: str, status_code: int, has_retry_after: bool = False) -> bool:
        """Return True if the answer asks for a retry."""
        if status_code == _TOO_MANY and has_retry_after and self.total:
            return True
        return super().is_retry(method, status_code, has_retry_after)


def throttling_retry() -> ThrottlingRetry:
    """Three times at most, and no later than in half a minute."""
    return ThrottlingRetry(_TIMES, retry_after_max=_LONGEST_SECONDS)
