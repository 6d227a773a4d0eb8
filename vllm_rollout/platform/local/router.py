"""The router of one release: a process that keeps its replicas and serves its stable URL.

    python -m vllm_rollout.platform.local.router --state DIR --release NAME

Started by `LocalPlatform`, detached. SIGTERM ends the replicas and the router. SIGHUP ends the
router alone: it hands its port over, finishes its open requests, and the replicas wait for the
next router, as they do when this one is killed.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from functools import partial
from http import HTTPStatus
from pathlib import Path

import aiohttp
import uvloop
from aiohttp import web
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from vllm_rollout.platform.local import processes
from vllm_rollout.platform.local.processes import log_folder
from vllm_rollout.platform.local.proxy import OWN_PATH, Balancer, Proxy, Upstream, make_session
from vllm_rollout.platform.local.reconcile import Reconciler
from vllm_rollout.platform.local.replica import Surroundings
from vllm_rollout.platform.local.router_control import RouterLock
from vllm_rollout.platform.local.state import ReleaseRow, State, open_state
from vllm_rollout.ports import LOOPBACK

_LOCK_SECONDS = 10.0
_BIND_ATTEMPTS = 50
_BIND_PAUSE_SECONDS = 0.1
_PROBE_TIMEOUT_SECONDS = 5.0
_FINISH_SECONDS = 30.0

_log = logging.getLogger(__name__)


async def serve(state_dir: Path, state: State, release: ReleaseRow, lock: RouterLock) -> None:
    """Serve the release until it is stopped, gone or handed over."""
    balancer: Balancer[Upstream] = Balancer()
    async with make_session() as session:
        around = Surroundings(
            release=release,
            state=state,
            logs=log_folder(state_dir, release.name),
            environment=dict(os.environ),
            healthy=partial(_healthy, session),
        )
        own: Balancer[Upstream] = Balancer()
        reconciler = Reconciler(around, balancer, own)
        application = web.Application()
        only_own = Proxy(release.name, own, session, under=OWN_PATH)
        application.router.add_route("*", OWN_PATH + "/{path:.*}", only_own.handle)
        application.router.add_route(
            "*", "/{path:.*}", Proxy(release.name, balancer, session).handle
        )
        runner = web.AppRunner(
            application,
            access_log=None,
            # Without this a request whose client is gone would go on at the replica.
            handler_cancellation=True,
            shutdown_timeout=_FINISH_SECONDS,
        )
        await runner.setup()
        site = await _listen(runner, release.port)
        work = asyncio.create_task(reconciler.run())
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, reconciler.stop)
        loop.add_signal_handler(signal.SIGHUP, work.cancel)
        # Last: who reads this may send signals.
        state.set_router(release.name, processes.current())
        try:
            await work
        except asyncio.CancelledError:
            _log.info("handing over")
        finally:
            # The port and the lock first: the next router can serve while this one finishes.
            await site.stop()
            state.set_router(release.name, None)
            lock.release()
            await runner.cleanup()


async def _listen(runner: web.AppRunner, port: int) -> web.TCPSite:
    async def bound() -> web.TCPSite:
        site = web.TCPSite(runner, LOOPBACK, port, reuse_address=True)
        await site.start()
        return site

    again = AsyncRetrying(
        retry=retry_if_exception_type(OSError),
        stop=stop_after_attempt(_BIND_ATTEMPTS),
        wait=wait_fixed(_BIND_PAUSE_SECONDS),
        reraise=True,
    )
    return await again(bound)


async def _healthy(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        timeout = aiohttp.ClientTimeout(total=_PROBE_TIMEOUT_SECONDS)
        async with session.get(f"{url}/health", timeout=timeout) as answer:
            return answer.status == HTTPStatus.OK
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


def main() -> int:
    """Run the router; 1 when another one serves the release or there is no such release."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--release", required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    lock = RouterLock(arguments.state, arguments.release)
    if not lock.take(within_seconds=_LOCK_SECONDS):
        _log.error("another router serves %s", arguments.release)
        return 1
    # What the router writes it would find out again, so it need not wait for the disk.
    state = open_state(arguments.state, durable=False)
    release = state.release(arguments.release)
    if release is None:
        _log.error("there is no release %s", arguments.release)
        return 1
    uvloop.run(serve(arguments.state, state, release, lock))
    return 0


if __name__ == "__main__":
    sys.exit(main())
