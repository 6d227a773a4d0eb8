"""One rollout per model at a time: a lease, renewed while the work goes on."""

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from vllm_rollout.errors import ExitCode, RolloutError
from vllm_rollout.platform.base import ConflictError, Store
from vllm_rollout.release.clock import Clock

TTL = timedelta(seconds=30)
_RENEW_EVERY = TTL / 3


class LeaseLostError(RolloutError):
    """Another run may hold the lease: this one changes nothing any more."""

    exit_code = ExitCode.INCONCLUSIVE


class Held:
    """A lease in hand. Ask `ensure` before every change."""

    def __init__(self, store: Store, name: str, holder: str, clock: Clock) -> None:
        self.holder = holder
        self._store, self._name, self._clock = store, name, clock
        self._renewed = clock.monotonic()
        self.after = ""
        """Whose expired lease this one took the place of; empty where it was free."""

    def renew(self) -> None:
        """Renew the lease; a conflict or an unreachable store leaves it to run out."""
        asked = self._clock.monotonic()
        lease = self._store.acquire(self._name, self.holder, ttl=TTL)
        self.after = lease.after or self.after
        self._renewed = asked

    @property
    def whose(self) -> str:
        """Who had the lease and let it run out, as the end of a sentence; empty if nobody."""
        return f"; the lease was {self.after}'s, who let it run out" if self.after else ""

    def ensure(self) -> None:
        """Return only while the lease is surely ours.

        Raises:
            LeaseLostError: it was not renewed within its time to live (this process was frozen,
                or the store was out of reach).
        """
        if self._clock.monotonic() - self._renewed >= TTL.total_seconds():
            raise LeaseLostError(
                f"the lease of {self._name} was lost; nothing more is changed by this run",
                remedy="Run gate-and-promote again: it finds the journal and goes on from there.",
            )


@contextmanager
def hold(
    store: Store, model: str, *, clock: Clock, on_wait: Callable[[str], None]
) -> Iterator[Held]:
    """Hold the model's lease for the length of a `with` block.

    A lease left behind by a killed run is waited for once, until it expires.

    Raises:
        ConflictError: another run holds and renews it.
    """
    holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"
    held = Held(store, model, holder, clock)
    try:
        held.renew()
    except ConflictError as conflict:
        on_wait(f"{conflict}; waiting {TTL.total_seconds():.0f} s in case that run is gone")
        clock.sleep(TTL + timedelta(seconds=1))
        held.renew()
    stop = threading.Event()

    def keep() -> None:
        while not stop.wait(_RENEW_EVERY.total_seconds()):
            try:
                held.renew()
            except RolloutError:
                continue  # `ensure` notices when the lease has run out

    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        yield held
    finally:
        stop.set()
        thread.join()
        store.release(model, holder)
