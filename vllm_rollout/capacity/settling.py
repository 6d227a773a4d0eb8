"""Settling between two loads: waits until the server answers as it did before the first."""

import statistics
import time
from collections.abc import Callable

from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.units import format_value
from vllm_rollout.observe.client import Inference

_REQUESTS = 3
_SLOWER = 2.0
_SLACK_SECONDS = 0.05
_PAUSE_SECONDS = 0.25


class Settling:
    """Sends single requests by `ask`, one after another, and compares them with the first ones.

    The server is idle again when three in a row are answered in at most twice the time that they
    took before any load. `most_seconds` is waited for that.
    """

    def __init__(
        self,
        ask: Callable[[], Inference],
        *,
        most_seconds: float,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ask, self._most_seconds = ask, most_seconds
        self._now, self._sleep = now, sleep
        self.alone_seconds = 0.0

    def begin(self) -> str:
        """Measure the idle server; why that cannot be done, or "".

        Raises:
            UnreachableError: nothing answers.
        """
        answers = [self._ask() for _ in range(_REQUESTS)]
        bad = next((answer for answer in answers if not answer.ok), None)
        if bad is not None:
            return f"a single request is not answered: {bad.outcome} {bad.error}".strip()
        self.alone_seconds = statistics.median(answer.seconds for answer in answers)
        return ""

    def wait(self) -> str:
        """Wait until the server is idle again; why it is not, or ""."""
        longest = _SLOWER * self.alone_seconds + _SLACK_SECONDS
        until = self._now() + self._most_seconds
        calm, problem = 0, "it was not asked"
        while True:
            try:
                answer = self._ask()
            except UnreachableError as error:
                calm, problem = 0, str(error)
            else:
                quick = answer.ok and answer.seconds <= longest
                calm = calm + 1 if quick else 0
                if not answer.ok:
                    problem = f"{answer.outcome} {answer.error}".strip()
                elif not quick:
                    problem = (
                        f"a single request takes {format_value(answer.seconds, 's')}, and took "
                        f"{format_value(self.alone_seconds, 's')} before"
                    )
            if calm == _REQUESTS:
                return ""
            if self._now() >= until:
                return f"not idle again after {format_value(self._most_seconds, 's')}: {problem}"
            if not calm:
                self._sleep(_PAUSE_SECONDS)
