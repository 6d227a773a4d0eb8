"""The engine: which sequences run, which wait, and when each token comes.

As in vLLM, `max_num_seqs` sequences run and the rest wait in order of arrival. Times of the
first token and between tokens are drawn from distributions; they do not depend on what else runs.
"""

import asyncio
import math
import random
import time
from collections.abc import Collection
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Literal, Protocol

from vllm_rollout.simulator.dials import Dials
from vllm_rollout.simulator.distributions import Distribution
from vllm_rollout.simulator.timetable import Timetable

FinishReason = Literal["length", "stop"]


class OverloadedError(Exception):
    """`max_num_queued_reqs` sequences wait already."""


class EngineDeadError(Exception):
    """The engine is dead, or died while the sequence was in it."""


class Listener(Protocol):
    """Receives the tokens of a sequence."""

    def on_token(self, sequence: "Sequence", *, last: bool) -> None:
        """Token number `sequence.produced` has come."""

    def on_death(self) -> None:
        """The engine died: nothing more comes for any of the listener's sequences."""


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """One text being generated. Times are `time.monotonic` seconds, NaN until they have come."""

    index: int
    listener: Listener
    prompt_tokens: int
    max_tokens: int
    length: int
    finish_reason: FinishReason
    rng: random.Random
    ttft: Distribution
    inter_token: Distribution
    siblings: int = 1
    arrived: float = field(default_factory=time.monotonic)
    started: float = math.nan
    first_token: float = math.nan
    last_token: float = math.nan
    produced: int = 0
    target_seconds: float = 0.0
    """Sum of what was drawn so far: the latency there would be without queue, stall or lateness."""
    due: float = 0.0


class Observer(Protocol):
    """Keeps the engine's metrics."""

    def first_token(self, sequence: Sequence) -> None:
        """The sequence's first token has come."""

    def next_token(self, gap_seconds: float) -> None:
        """Another token has come."""

    def iteration(self, prompt_tokens: int, generated_tokens: int) -> None:
        """One step of the engine is done."""

    def finished(self, sequence: Sequence) -> None:
        """The sequence's last token has come."""

    def rejected(self) -> None:
        """A request found the queue full."""


class Engine:
    """Runs sequences. All methods are for the event loop's own thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, dials: Dials, observer: Observer) -> None:
        self.timetable: Timetable[Sequence] = Timetable(loop, self._token, self._settle)
        self._observer = observer
        # Dictionaries for their order and their quick removal.
        self._running: dict[Sequence, None] = {}
        self._waiting: dict[Sequence, None] = {}
        self._pauses: set[str] = set()
        self._step = [0, 0]
        self._dials = dials
        self.turn(dials)

    @property
    def running(self) -> Collection[Sequence]:
        """The sequences that generate."""
        return self._running.keys()

    @property
    def waiting(self) -> Collection[Sequence]:
        """The sequences that wait for a place."""
        return self._waiting.keys()

    @property
    def dead(self) -> bool:
        """True if the engine is dead."""
        return self._dials.dead

    def turn(self, dials: Dials) -> None:
        """Follow `dials` from now on. Sequences keep the distributions they came with."""
        self._dials = dials
        self.pause("hang", on=dials.hang)
        if dials.dead:
            self._die()
        self._fill()

    def pause(self, why: str, *, on: bool) -> None:
        """Stand still as long as there is any reason to."""
        (self._pauses.add if on else self._pauses.discard)(why)
        (self.timetable.stop if self._pauses else self.timetable.go)()

    def submit(self, sequences: SequenceOf[Sequence]) -> None:
        """Take all of a request's sequences.

        Raises:
            EngineDeadError: nothing was taken.
            OverloadedError: likewise.
        """
        if self._dials.dead:
            raise EngineDeadError
        limit = self._dials.max_num_queued_reqs
        if limit is not None and len(self._waiting) >= limit:
            self._observer.rejected()
            raise OverloadedError
        self._waiting.update(dict.fromkeys(sequences))
        self._fill()

    def abort(self, sequences: SequenceOf[Sequence]) -> None:
        """Forget the sequences, wherever they are."""
        for sequence in sequences:
            self._waiting.pop(sequence, None)
            self._running.pop(sequence, None)
        self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._dials.max_num_seqs:
            sequence = next(iter(self._waiting))
            del self._waiting[sequence]
            self._running[sequence] = None
            sequence.started = time.monotonic()
            sequence.target_seconds = sequence.ttft.draw(sequence.rng)
            sequence.due = self.timetable.now() + sequence.target_seconds
            self.timetable.add(sequence.due, sequence)

    def _die(self) -> None:
        listeners = {sequence.listener for sequence in (*self._running, *self._waiting)}
        self._running.clear()
        self._waiting.clear()
        for listener in listeners:
            listener.on_death()

    def _token(self, sequence: Sequence, now: float) -> float | None:
        if sequence not in self._running:  # aborted since
            return None
        sequence.produced += 1
        self._step[1] += 1
        if sequence.produced == 1:
            sequence.first_token = sequence.last_token = now
            self._step[0] += sequence.prompt_tokens
            self._observer.first_token(sequence)
        else:
            self._observer.next_token(now - sequence.last_token)
            sequence.last_token = now
        last = sequence.produced == sequence.length
        if last:
            del self._running[sequence]
            self._observer.finished(sequence)
        sequence.listener.on_token(sequence, last=last)
        if last:
            self._fill()
            return None
        gap = sequence.inter_token.draw(sequence.rng)
        sequence.target_seconds += gap
        sequence.due += gap
        return sequence.due

    def _settle(self) -> None:
        if self._step[1]:
            self._observer.iteration(*self._step)
            self._step = [0, 0]
