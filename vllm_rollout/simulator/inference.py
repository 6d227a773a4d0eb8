"""Answers completions and chats, from the request's body to the last byte, faults included."""

import asyncio
import math
import os
import secrets
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from aiohttp import web

from vllm_rollout.simulator import responses as answers
from vllm_rollout.simulator.dials import Dials
from vllm_rollout.simulator.engine import Engine, EngineDeadError, OverloadedError, Sequence
from vllm_rollout.simulator.listeners import CutError, Gatherer, Streamer
from vllm_rollout.simulator.recorded_times import Outcome, RecordedTimes
from vllm_rollout.simulator.requests import Kind, Refusal, read
from vllm_rollout.simulator.response_plan import Plan

_JSON = {"Content-Type": "application/json"}


def json_response(body: Any, status: int = 200) -> web.Response:
    """A JSON answer as FastAPI writes it."""
    return web.Response(body=answers.to_json(body), status=status, headers=_JSON)


@dataclass(slots=True, kw_only=True)
class _Exchange:
    """One request in progress. An outcome that nobody sets is a client that went away."""

    request: web.Request
    request_id: str
    received: float
    stream: bool = False
    outcome: Outcome = "aborted"
    sequences: list[Sequence] = field(default_factory=list)
    listener: Gatherer | None = None


class InferenceHandler:
    """Answers inference requests by running them on the engine, and records their times."""

    def __init__(self, model: str, engine: Engine, truth: RecordedTimes, dials: Dials) -> None:
        self._model = model
        self._engine = engine
        self._truth = truth
        self._dials = dials
        self._number = 0
        self._crash_at = dials.crash_after
        self._fingerprint = f"vllm-{answers.VERSION}-{zlib.crc32(model.encode()):08x}"

    def turn(self, dials: Dials, changes: Mapping[str, Any]) -> None:
        """Follow `dials`. A changed `seed` or `crash_after` restarts its count."""
        self._dials = dials
        if "seed" in changes:
            self._number = 0
        if "seed" in changes or "crash_after" in changes:
            after = dials.crash_after
            self._crash_at = None if after is None else self._number + after

    async def answer(self, request: web.Request, kind: Kind) -> web.StreamResponse:
        """Answer one request and record what became of it."""
        unique = request.headers.get("X-Request-Id") or secrets.token_hex(8)
        exchange = _Exchange(
            request=request,
            request_id=answers.new_id(kind, unique),
            received=time.monotonic(),
        )
        try:
            plan = await self._plan(exchange, kind)
            return await (self._stream if exchange.stream else self._whole)(exchange, plan)
        except Refusal as refusal:
            return await _sent(request, json_response(refusal.body, refusal.status))
        finally:
            self._engine.abort(exchange.sequences)
            self._record(exchange)

    async def _plan(self, exchange: _Exchange, kind: Kind) -> Plan:
        content_type = exchange.request.headers.get("Content-Type", "")
        body = await exchange.request.read()
        exchange.outcome = "refused"
        inference = read(
            kind,
            content_type,
            body,
            model=self._model,
            max_model_len=self._dials.max_model_len,
        )
        exchange.stream = inference.stream
        if self._number == self._crash_at:
            os._exit(1)
        self._number += 1
        plan = Plan(inference, self._dials, self._number)
        if self._engine.dead:
            exchange.outcome = "dead"
            raise _dead()
        if plan.fails:
            exchange.outcome = "error"
            raise _injected(self._dials.error_status)
        exchange.outcome = "aborted"
        return plan

    async def _whole(self, exchange: _Exchange, plan: Plan) -> web.StreamResponse:
        try:
            await self._generate(exchange, plan, Gatherer(plan))
        except (EngineDeadError, OverloadedError) as error:
            raise _refused(exchange, error) from None
        body = answers.to_json(
            plan.body(
                request_id=exchange.request_id, model=self._model, fingerprint=self._fingerprint
            )
        )
        if plan.truncated:
            exchange.outcome = "truncated"
            headers = {**_JSON, "Content-Length": str(len(body))}
            cut = web.StreamResponse(headers=headers)
            await cut.prepare(exchange.request)
            await cut.write(body[: len(body) // 2])
            _transport(exchange.request).close()
            return cut
        if plan.malformed:
            body = body[: len(body) // 2]
        response = await _sent(exchange.request, web.Response(body=body, headers=_JSON))
        exchange.outcome = "malformed" if plan.malformed else "ok"
        return response

    async def _stream(self, exchange: _Exchange, plan: Plan) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(exchange.request)
        frames = answers.Frames(
            plan.inference.kind,
            request_id=exchange.request_id,
            model=self._model,
            fingerprint=self._fingerprint,
        )
        transport = _transport(exchange.request)
        chunked = exchange.request.version >= (1, 1)
        streamer = Streamer(plan, frames, transport, chunked=chunked)
        try:
            await self._generate(exchange, plan, streamer)
        except CutError:
            exchange.outcome = "truncated"
            transport.close()
            return response
        except (EngineDeadError, OverloadedError) as error:
            body = _refused(exchange, error).body
            streamer.write(answers.error_event(body) + answers.DONE)
        else:
            exchange.outcome = "malformed" if plan.malformed else "ok"
        await response.write_eof()
        return response

    async def _generate(self, exchange: _Exchange, plan: Plan, listener: Gatherer) -> None:
        exchange.listener = listener
        sequences = plan.sequences(listener, arrived=exchange.received)
        self._engine.submit(sequences)
        exchange.sequences = sequences
        await listener.done

    def _record(self, exchange: _Exchange) -> None:
        listener = exchange.listener
        self._truth.add(
            request_id=exchange.request_id,
            stream=exchange.stream,
            outcome=exchange.outcome,
            received=exchange.received,
            first_token=listener.first_token if listener else math.nan,
            end=time.monotonic(),
            tokens=sum(sequence.produced for sequence in exchange.sequences),
            target_ttft_seconds=listener.target_ttft_seconds if listener else math.nan,
            target_seconds=max(
                (sequence.target_seconds for sequence in exchange.sequences), default=math.nan
            ),
        )


def _refused(exchange: _Exchange, error: EngineDeadError | OverloadedError) -> Refusal:
    if isinstance(error, EngineDeadError):
        exchange.outcome = "dead"
        return _dead()
    exchange.outcome = "overloaded"
    return Refusal(
        "The engine is currently busy and cannot accept new requests. "
        "Please try again later or on a different instance.",
        status=503,
    )


def _dead() -> Refusal:
    return Refusal(
        "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        status=500,
        kind="InternalServerError",
    )


def _injected(status: int) -> Refusal:
    known = status in {one.value for one in HTTPStatus}
    kind = "InternalServerError" if status == 500 else ""
    phrase = HTTPStatus(status).phrase if known else f"Error {status}"
    return Refusal(phrase, status=status, kind=kind or phrase)


def _transport(request: web.Request) -> asyncio.Transport:
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    return transport


async def _sent(request: web.Request, response: web.Response) -> web.Response:
    """Send now, so that the recorded end is the end."""
    await response.prepare(request)
    await response.write_eof()
    return response
