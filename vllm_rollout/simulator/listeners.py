"""Delivery of the engine's tokens: awaited for one body, or written as they come."""

import asyncio
import math

from vllm_rollout.simulator.engine import EngineDeadError, Sequence
from vllm_rollout.simulator.response_plan import Plan
from vllm_rollout.simulator.responses import DONE, Frames

_BROKEN_EVENT = b'data: {"id":"cmpl-\n\n'


class CutError(Exception):
    """The stream was cut off on purpose."""


class Gatherer:
    """Waits until all sequences of a request have ended; `done` says so."""

    def __init__(self, plan: Plan) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.first_token = math.nan
        self.target_ttft_seconds = math.nan
        self._plan = plan
        self._open = plan.choices

    def on_token(self, sequence: Sequence, *, last: bool) -> None:
        """Note the token."""
        if math.isnan(self.first_token):
            self.first_token = sequence.last_token
            self.target_ttft_seconds = sequence.target_seconds
        if last:
            self._open -= 1
            if not self._open:
                self._end(None)

    def on_death(self) -> None:
        """Fail: nothing more will come."""
        self._end(EngineDeadError())

    def _end(self, error: Exception | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class Streamer(Gatherer):
    """Writes each token to the connection in the moment it comes.

    Straight to the transport, because a task switch per token and stream is what would make a
    thousand streams late. What a slow reader has not taken waits in memory, one answer at most.
    `chunked` is false for an HTTP/1.0 client.
    """

    def __init__(
        self, plan: Plan, frames: Frames, transport: asyncio.Transport, *, chunked: bool
    ) -> None:
        super().__init__(plan)
        self._frames = frames
        self._transport = transport
        self._chunked = chunked

    def on_token(self, sequence: Sequence, *, last: bool) -> None:
        """Write the token, then note it."""
        if self.done.done():  # cut off; the sequence is not aborted yet
            return
        half_way = sequence.produced == (sequence.length + 1) // 2
        if half_way and self._plan.truncated:
            self._end(CutError())
            return
        broken = half_way and self._plan.malformed
        self.write(_BROKEN_EVENT if broken else self._event(sequence, last=last))
        if last and self._open == 1:
            self._write_end()
        super().on_token(sequence, last=last)

    def write(self, data: bytes) -> None:
        """Send `data` as one HTTP chunk."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def _event(self, sequence: Sequence, *, last: bool) -> bytes:
        index = sequence.index
        text = self._plan.token_text(index, sequence.produced)
        opening = self._frames.opening(index) if sequence.produced == 1 else b""
        if not last:
            return opening + self._frames.token(index, text)
        closing = self._open == 1 and not self._plan.inference.include_usage
        reason = sequence.finish_reason
        return opening + self._frames.last_token(index, text, reason, closing=closing)

    def _write_end(self) -> None:
        counts = self._plan.usage if self._plan.inference.include_usage else None
        self.write((self._frames.usage(counts) if counts else b"") + DONE)
