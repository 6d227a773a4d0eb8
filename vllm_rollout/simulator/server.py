"""The HTTP server: vLLM's routes and middleware, and the simulator's own under `/simulator/`."""

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0, generate_latest

from vllm_rollout.simulator import responses as answers
from vllm_rollout.simulator.dials import DialError, Dials
from vllm_rollout.simulator.engine import Engine
from vllm_rollout.simulator.http_metrics import HttpMetrics
from vllm_rollout.simulator.inference import InferenceHandler, json_response
from vllm_rollout.simulator.metrics import EngineMetrics
from vllm_rollout.simulator.recorded_times import RecordedTimes
from vllm_rollout.simulator.stalls import Stalls
from vllm_rollout.simulator.timetable import Lateness

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# vLLM leaves these out of the instrumentator's metrics; the simulator's own are not vLLM's at all.
_UNMEASURED = ("/metrics", "/health", "/load", "/ping", "/version", "/simulator/")
_LONGEST_BODY_BYTES = 64 * 1024 * 1024
_LAG_PROBE_SECONDS = 0.1


class Simulator:
    """A model server without a model. To be made and used inside a running event loop."""

    def __init__(self, model: str, dials: Dials, api_keys: tuple[str, ...] = ()) -> None:
        loop = asyncio.get_running_loop()
        self.dials = dials
        self._model = model
        self._api_keys = tuple(key.encode() for key in api_keys)
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        metrics = EngineMetrics(self._registry, model)
        self._http_metrics = HttpMetrics(self._registry)
        self._truth = RecordedTimes()
        self._loop_lag = Lateness()
        self._engine = Engine(loop, dials, metrics)
        metrics.watch(self._engine)
        self._inference = InferenceHandler(model, self._engine, self._truth, dials)
        self._stalls = Stalls(loop, self._engine)
        self._stalls.turn(dials)
        self._probe_loop(loop, time.monotonic())

    def turn(self, changes: Mapping[str, Any]) -> None:
        """Turn some dials.

        Raises:
            DialError: nothing was turned.
        """
        self.dials = self.dials.turned(changes)
        self._inference.turn(self.dials, changes)
        self._engine.turn(self.dials)
        if any(name.startswith("stall_") for name in changes):
            self._stalls.turn(self.dials)

    def application(self) -> web.Application:
        """The aiohttp application."""
        # Outermost first. Unauthorized requests never reach the metrics, as in vLLM.
        layers = [self._frozen, self._authorized, self._measured]
        app = web.Application(middlewares=layers, client_max_size=_LONGEST_BODY_BYTES)
        app.on_response_prepare.append(_uvicorn_headers)
        routes: list[tuple[str, str, Handler]] = [
            ("GET", "/health", self._health),
            ("GET", "/ping", self._health),
            ("POST", "/ping", self._health),
            ("GET", "/version", self._version),
            ("GET", "/load", self._load),
            ("GET", "/metrics", self._metrics),
            ("GET", "/v1/models", self._models),
            ("POST", "/v1/completions", self._completions),
            ("POST", "/v1/chat/completions", self._chat_completions),
            ("GET", "/simulator/dials", self._get_dials),
            ("PATCH", "/simulator/dials", self._patch_dials),
            ("GET", "/simulator/truth", self._get_truth),
            ("DELETE", "/simulator/truth", self._delete_truth),
            ("GET", "/simulator/lateness", self._get_lateness),
            ("DELETE", "/simulator/lateness", self._delete_lateness),
        ]
        for method, path, handler in routes:
            app.router.add_route(method, path, handler)
        return app

    def _probe_loop(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        now = time.monotonic()
        self._loop_lag.record(max(0.0, now - due))
        due = now + _LAG_PROBE_SECONDS
        loop.call_later(_LAG_PROBE_SECONDS, self._probe_loop, loop, due)

    # Middleware

    @web.middleware
    async def _frozen(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.startswith("/simulator/"):
            await self._stalls.over()
        return await handler(request)

    @web.middleware
    async def _authorized(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._api_keys and request.path.startswith("/v1") and request.method != "OPTIONS":
            scheme, _, key = request.headers.get("Authorization", "").partition(" ")
            given = key.encode(errors="replace")
            # Every key is compared, so that the time taken tells nothing.
            known = [secrets.compare_digest(given, one) for one in self._api_keys]
            if scheme.lower() != "bearer" or not any(known):
                return json_response({"error": "Unauthorized"}, 401)
        return await handler(request)

    @web.middleware
    async def _measured(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.monotonic()
        status, response_bytes = 500, 0
        try:
            response = await _routed(request, handler)
        except (asyncio.CancelledError, ConnectionError):
            status = 200  # a client that goes away is no error to the instrumentator
            raise
        else:
            status, response_bytes = response.status, response.content_length or 0
            return response
        finally:
            if not request.path.startswith(_UNMEASURED):
                resource = request.match_info.route.resource
                self._http_metrics.observe(
                    handler="none" if resource is None else resource.canonical,
                    method=request.method,
                    status=status,
                    seconds=time.monotonic() - started,
                    request_bytes=request.content_length or 0,
                    response_bytes=response_bytes,
                )

    # vLLM's routes

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self._engine.dead else 200)

    async def _version(self, _: web.Request) -> web.Response:
        return json_response({"version": answers.VERSION})

    async def _load(self, _: web.Request) -> web.Response:
        # Always 0, as from a vLLM started without --enable-server-load-tracking.
        return json_response({"server_load": 0})

    async def _models(self, _: web.Request) -> web.Response:
        unique = secrets.token_hex(8)
        return json_response(answers.model_list(self._model, self.dials.max_model_len, unique))

    async def _metrics(self, _: web.Request) -> web.Response:
        body = generate_latest(self._registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_1_0_0})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._inference.answer(request, "completion")

    async def _chat_completions(self, request: web.Request) -> web.StreamResponse:
        return await self._inference.answer(request, "chat")

    # The simulator's own routes

    async def _get_dials(self, _: web.Request) -> web.Response:
        return json_response(self.dials.model_dump())

    async def _patch_dials(self, request: web.Request) -> web.Response:
        try:
            changes = json.loads(await request.read())
            if not isinstance(changes, dict):
                raise DialError("the body must be a JSON object of dials")
            self.turn(changes)
        except ValueError as error:
            return json_response({"error": str(error), "valid": list(Dials.model_fields)}, 400)
        return json_response(self.dials.model_dump())

    async def _get_truth(self, _: web.Request) -> web.Response:
        return json_response(self._truth.document())

    async def _delete_truth(self, _: web.Request) -> web.Response:
        self._truth.clear()
        return web.Response(status=204)

    async def _get_lateness(self, _: web.Request) -> web.Response:
        tokens = self._engine.timetable.lateness
        return json_response({"tokens": tokens.summary(), "loop": self._loop_lag.summary()})

    async def _delete_lateness(self, _: web.Request) -> web.Response:
        self._engine.timetable.lateness.clear()
        self._loop_lag.clear()
        return web.Response(status=204)


async def _routed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Call the handler; tell what the router cannot find as FastAPI does."""
    try:
        return await handler(request)
    except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as problem:
        response = json_response({"detail": problem.reason}, problem.status)
        if "Allow" in problem.headers:
            response.headers["Allow"] = problem.headers["Allow"]
        return response


async def _uvicorn_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "uvicorn"
    # The middleware that refuses keys stands outside the one that adds this.
    if response.status != 401:
        response.headers["Vary"] = "Origin"
