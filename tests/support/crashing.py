"""A store and a platform that stop the world at a chosen call, around the real ones.

What happens there is the test's: an exception no code expects, SIGKILL, SIGSTOP, or another run.
"""

from collections.abc import Callable
from typing import Any, Literal

from vllm_rollout.model.errors import UnreachableError

When = Literal["before", "after"]

_COUNTED = ("write", "apply", "rollback", "uninstall", "recover", "history", "values", "build")
_COUNTED += ("replicas", "read", "weights", "set_weights")


def is_a_call(name: str, _arguments: tuple[Any, ...]) -> bool:
    """Whether the call reads or writes the store or a release; the lease has its own tests."""
    return name in _COUNTED


class Killed(BaseException):
    """The process ends here, as by SIGKILL: nothing after this runs."""


class Calls:
    """Numbers the calls that `counts` is true of; before or after call `at` it does `stop`.

    `at` None only counts. After `Killed` no call reaches anything any more, as from a dead process.
    """

    def __init__(
        self,
        stop: Callable[[], None],
        *,
        at: int | None = None,
        when: When = "before",
        counts: Callable[[str, tuple[Any, ...]], bool] = is_a_call,
    ) -> None:
        self.names: list[str] = []
        self._stop, self._at, self._when, self._counts = stop, at, when, counts
        self.dead = False
        self.cut = False
        """Whether nothing is reached any more."""

    def around(self, name: str, arguments: tuple[Any, ...], act: Callable[[], Any]) -> Any:
        """Do `act`, or stop."""
        if self.dead:
            raise Killed
        if self.cut:
            raise UnreachableError("no answer", address="the cluster")
        if not self._counts(name, arguments):
            return act()
        self.names.append(f"{name} {arguments[0] if arguments else ''}".rstrip())
        here = len(self.names) - 1 == self._at
        if here and self._when == "before":
            self._halt()
        try:
            return act()
        finally:
            if here and self._when == "after":
                self._halt()

    def _halt(self) -> None:
        try:
            self._stop()
        except Killed:
            self.dead = True
            raise


class Wrapped:
    """`inner`, with every method call counted by `calls`."""

    def __init__(self, inner: Any, calls: Calls) -> None:
        self._inner, self._calls = inner, calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name == "store":
            return Wrapped(found, self._calls)
        if not callable(found) or name.startswith("_"):
            return found
        return lambda *arguments, **named: self._calls.around(
            name, arguments, lambda: found(*arguments, **named)
        )
