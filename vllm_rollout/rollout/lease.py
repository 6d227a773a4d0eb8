"""Fenced lease of a model, renewed while the work goes on: one rollout per model at a time.

Fenced means that a run which lost its lease changes nothing more, even if it was frozen and does
not know yet: `HeldLease.ensure` asks the store right before every change, a renewal never takes
back a lease that another may have had in between, and the time that is left is counted by a clock
that goes on while the machine sleeps.

A run takes a lease over only after it saw it unchanged for its whole time to live by its own clock.
No two machines' clocks are compared, so none that is wrong, or is stepped, ends a lease early.
"""

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from vllm_rollout.model.errors import ExitCode, RolloutError
from vllm_rollout.platform.base import ConflictError, Lease, LeaseHeldError
from vllm_rollout.platform.writer import Store
from vllm_rollout.rollout.run import Clock

TTL = timedelta(seconds=30)
_RENEWALS = 3
"""Renewals of the own lease, or checks of another's, in one time to live."""
_MARGIN = 0.1
"""Share of the time to live that is left unused, for requests still running when it ends."""


class LeaseLostError(RolloutError):
    """Another run may hold the lease: this one changes nothing more."""

    exit_code = ExitCode.INCONCLUSIVE


class HeldLease:
    """A held lease: the `Guard` of every change."""

    def __init__(self, store: Store, name: str, *, clock: Clock, ttl: timedelta) -> None:
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.after = ""
        """Holder whose expired lease this one replaced; empty where it was free."""
        self._store, self._name, self._clock, self._ttl = store, name, clock, ttl
        self._renewed = clock.monotonic()
        self._lost = ""

    def take(self, over: Lease | None = None) -> None:
        """Take the lease where it is free or still is `over`. Raises as `Store.acquire`."""
        asked = self._clock.monotonic()
        lease = self._store.acquire(self._name, self.holder, ttl=self._ttl, over=over)
        self._renewed, self.after = asked, lease.after

    @property
    def whose(self) -> str:
        """End of a sentence that names the holder whose lease expired; empty if there was none."""
        return f"; the lease was {self.after}'s, who let it run out" if self.after else ""

    def renew(self) -> None:
        """Renew the lease at the store.

        Raises:
            LeaseLostError: it is another's, or may have been in between: it is lost for good.
            UnreachableError: the store did not answer; the lease may still be ours.
        """
        if self._lost:
            raise self._loss(self._lost)
        # No lock of ours here: who asks in a transaction of the store has the store's already.
        asked = self._clock.monotonic()
        try:
            self._store.renew(self._name, self.holder, ttl=self._ttl)
        except ConflictError as conflict:
            self._lost = str(conflict)
            raise self._loss(self._lost) from conflict
        self._renewed = max(self._renewed, asked)

    def ensure(self) -> None:
        """Return only if the store confirms the lease now, with most of its time left.

        Raises: as `renew`; LeaseLostError also when the answer took too long.
        """
        self.renew()
        if self.seconds_left() <= 0:
            raise self._loss("the store answered too late")

    def seconds_left(self) -> float:
        """Return for how long the lease is certainly ours without a renewal; 0 when lost."""
        if self._lost:
            return 0.0
        certain = self._ttl.total_seconds() * (1 - _MARGIN)
        return max(0.0, self._renewed + certain - self._clock.monotonic())

    def _loss(self, why: str) -> LeaseLostError:
        return LeaseLostError(
            f"the lease of {self._name} was lost, and nothing more is changed by this run: {why}",
            remedy="Run the same command again: a rollout goes on from its journal.",
        )


@contextmanager
def hold(
    store: Store,
    model: str,
    *,
    clock: Clock,
    on_wait: Callable[[str], object],
    ttl: timedelta = TTL,
    alive: Callable[[], bool] = lambda: True,
) -> Iterator[HeldLease]:
    """Hold the model's lease for the length of a `with` block, renewed while the work is `alive`.

    A lease left behind by a run that is gone is waited for, once, until it has run out.

    Raises:
        LeaseHeldError: another run holds it, and has renewed it while this one waited.
    """
    held = HeldLease(store, model, clock=clock, ttl=ttl)
    try:
        held.take()
    except LeaseHeldError as conflict:
        on_wait(f"{conflict}; waiting {ttl.total_seconds():.0f} s to see whether that run is gone")
        _take_over(held, conflict.lease, clock=clock, ttl=ttl)
    stop = threading.Event()

    def keep() -> None:
        while not stop.wait(ttl.total_seconds() / _RENEWALS):
            # `ensure` says what is wrong when it matters; an unreachable store may come back.
            with suppress(RolloutError):
                if alive():
                    held.renew()

    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        yield held
    finally:
        stop.set()
        thread.join()
        # What cannot be given back now runs out.
        with suppress(RolloutError):
            store.release(model, held.holder)


def _take_over(held: HeldLease, seen: Lease, *, clock: Clock, ttl: timedelta) -> None:
    since = clock.monotonic()
    while True:
        clock.sleep(ttl / _RENEWALS)
        run_out = clock.monotonic() - since >= ttl.total_seconds()
        try:
            return held.take(over=seen if run_out else None)
        except LeaseHeldError as conflict:
            if conflict.lease.version != seen.version:
                raise
