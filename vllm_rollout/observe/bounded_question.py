"""Questions that may hang, each asked in a thread of its own."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

_T = TypeVar("_T")


class BoundedQuestion(Generic[_T]):
    """A question in a thread of its own, one at a time.

    What hangs is a gap, and not the end of who asks. What raises has no answer.
    """

    def __init__(self, ask: Callable[[], _T]) -> None:
        self._ask = ask
        self._answer: _T | None = None
        self._asking: threading.Thread | None = None

    def start(self) -> None:
        """Ask, unless a question is still open or its answer was not taken."""
        if not self.open and self._answer is None:
            self._asking = threading.Thread(target=self._run, name="question", daemon=True)
            self._asking.start()

    @property
    def open(self) -> bool:
        """True if a question has no answer yet."""
        return self._asking is not None and self._asking.is_alive()

    def get(self, seconds: float) -> _T | None:
        """The answer, None where there is none within `seconds`; an older one is dropped."""
        if not self.open:
            self._answer = None
        self.start()
        return self.answer(seconds)

    def answer(self, seconds: float = 0) -> _T | None:
        """Take the answer, once; None where there is none within `seconds`."""
        if self._asking is None:
            return None
        self._asking.join(seconds)
        if self._asking.is_alive():
            return None
        answer, self._answer = self._answer, None
        return answer

    def _run(self) -> None:
        with suppress(Exception):  # whatever the answer was, nothing is known
            self._answer = self._ask()
