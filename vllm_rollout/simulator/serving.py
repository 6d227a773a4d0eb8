"""Serves the simulator from this process until it is stopped."""

import asyncio
import gc
import signal
import sys

from aiohttp import web

from vllm_rollout.model.errors import DeployError
from vllm_rollout.simulator.dials import Dials
from vllm_rollout.simulator.server import Simulator

# uvicorn's, and vLLM's keep-alive.
_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 5.0
_NO_TIME_SECONDS = 0.001


async def serve(
    model: str,
    dials: Dials,
    api_keys: tuple[str, ...],
    *,
    address: tuple[str, int],
    start_delay: float,
    shutdown_timeout: float,
    end_with_stdin: bool,
) -> None:
    """Listen at `address` after `start_delay` seconds, until SIGTERM or SIGINT.

    Raises:
        DeployError: the address is taken, or cannot be had.
    """
    loop = asyncio.get_running_loop()
    told_to_end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_end.set)
    if end_with_stdin:
        await loop.connect_read_pipe(lambda: _EndOfInput(told_to_end), sys.stdin)
    if start_delay and await _set_within(told_to_end, start_delay):
        return
    application = Simulator(model, dials, api_keys).application()
    runner = web.AppRunner(
        application,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=_KEEP_ALIVE_SECONDS,
        # To aiohttp 0 means for ever.
        shutdown_timeout=max(shutdown_timeout, _NO_TIME_SECONDS),
    )
    await runner.setup()
    # What exists now stays: a collection that walks it would only make tokens late.
    gc.collect()
    gc.freeze()
    try:
        site = web.TCPSite(runner, *address, backlog=_BACKLOG, reuse_address=True)
        await site.start()
    except OSError as error:
        raise DeployError(
            f"cannot listen on {address[0]}:{address[1]}: {error.strerror or error}",
            remedy="Choose another --port, or 0 for a free one.",
        ) from None
    host, port = runner.addresses[0][:2]
    sys.stdout.write(f"listening on http://{host}:{port}\n")
    sys.stdout.flush()
    await told_to_end.wait()
    await runner.cleanup()


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


class _EndOfInput(asyncio.Protocol):
    def __init__(self, event: asyncio.Event) -> None:
        self._event = event

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the base's signature
        self._event.set()
