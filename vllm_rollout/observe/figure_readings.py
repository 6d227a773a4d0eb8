"""Readings of the figures that resources are judged by: those of the side under test."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Self

from vllm_rollout.model.deployment import Canary, Deployment
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.live_figures import SideFigures
from vllm_rollout.model.observation import FiguresRead
from vllm_rollout.observe.live_figures import LiveFigures
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.policy import Policy

CANARY = "canary"
"""The side of a ramp that is under test."""
_FEWEST = 2
"""Readings that show anything: a figure that does not move may be of a source that has stopped."""


def utc_now() -> datetime:
    """The time, by this machine's clock."""
    return datetime.now(UTC)


class FigureReader:
    """Reads figures of one deployment; while a ramp is under way, those of its canary.

    What is judged is no rate: a second scrape of the servers is not waited for.
    """

    def __init__(
        self,
        policy: Policy,
        platform: ReleaseReader,
        deployment: Deployment,
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._live = LiveFigures(policy, platform, pause_seconds=0)
        self._now = now
        self._window = policy.triggers.window
        self._needs_canary = isinstance(deployment, Canary)
        self._deployment = Deployment(
            deployment.model, deployment.environment, deployment.namespace
        )

    def read(self) -> FiguresRead:
        """Read them now. Does not raise for what does not answer."""
        now = self._now()
        try:
            sides = self._live.read(self._deployment, window=self._window, now=now)
        except (RolloutError, OSError) as error:
            return FiguresRead(at=now, problem=str(error))
        side = _under_test(sides, needs_canary=self._needs_canary)
        if side is None:
            what = "no canary" if self._needs_canary else "nothing"
            return FiguresRead(at=now, problem=f"{what} of {self._deployment} was found")
        return FiguresRead(at=now, figures=side.figures)

    def close(self) -> None:
        """Close what it reads by."""
        self._live.close()


def _under_test(sides: Sequence[SideFigures], *, needs_canary: bool) -> SideFigures | None:
    canary = next((side for side in sides if side.side == CANARY), None)
    if canary is not None or needs_canary:
        return canary
    return sides[0] if sides else None


class Readings:
    """Readings made once in every so many seconds, in a thread of its own, from entering the
    context to leaving it: a source that hangs makes nobody wait. Without a reader there are none.
    """

    def __init__(self, reader: FigureReader | None, *, every: float) -> None:
        self._reader, self._every = reader, every
        self._found: deque[FiguresRead] = deque()
        self._any, self._over = threading.Event(), threading.Event()

    def __enter__(self) -> Self:
        if self._reader is not None:
            go_on = partial(self._go_on, self._reader)
            threading.Thread(target=go_on, name="figures", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def new(self, seconds: float) -> tuple[FiguresRead, ...]:
        """The readings since the last call; the very first is waited for, `seconds` at most."""
        if self._reader is not None:
            self._any.wait(seconds)
        return tuple(self._found.popleft() for _ in range(len(self._found)))

    def _go_on(self, reader: FigureReader) -> None:
        with closing(reader):
            while not self._over.is_set():
                with suppress(Exception):  # an answer that is none is no reading
                    self._found.append(reader.read())
                    self._any.set()
                self._over.wait(self._every)


def readings_for_a_while(
    platform: ReleaseReader, policy: Policy, deployment: Deployment
) -> list[FiguresRead]:
    """Read for the policy's `triggers.window`, once in each `watch.interval`."""
    found: list[FiguresRead] = []
    until = time.monotonic() + policy.triggers.window_seconds
    with closing(FigureReader(policy, platform, deployment)) as reader:
        while time.monotonic() < until or len(found) < _FEWEST:
            found.append(reader.read())
            time.sleep(policy.watch.interval_seconds)
    return found
