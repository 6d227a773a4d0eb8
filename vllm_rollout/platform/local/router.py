"""The router of one release: a process that keeps its replicas and serves its stable URL.

    python -m vllm_rollout.platform.local.router --state DIR --release NAME

Started by `LocalPlatform`, detached. SIGTERM ends the replicas and the router. SIGHUP ends the
router alone: it hands its port over, finishes its open requests, and the replicas wait for the
next router, as they do when this one is killed.

The process that is started and signalled only starts the one that serves, again whenever that dies.
"""

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path

import aiohttp
import psutil
import uvloop
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.platform.local.processes import log_folder
from vllm_rollout.platform.local.proxy import (
    OUT_OF_DESCRIPTORS,
    OWN_PATH,
    Balancer,
    Proxy,
    Upstream,
    make_session,
    unavailable,
)
from vllm_rollout.platform.local.reconcile import Reconciler
from vllm_rollout.platform.local.replica import Surroundings
from vllm_rollout.platform.local.router_control import DONE, REFUSED, RouterLock, Supervisor
from vllm_rollout.platform.local.router_state import RouterState
from vllm_rollout.platform.local.state import ReleaseRow, open_state
from vllm_rollout.ports import LOOPBACK

_LOCK_SECONDS = 15.0
_BIND_ATTEMPTS = 5
_BIND_PAUSE_SECONDS = 0.1
_PROBE_TIMEOUT_SECONDS = 5.0
_RESERVED_DESCRIPTORS = 100
"""For probes, starts of replicas, logs and the state file."""
_FEW_DESCRIPTORS = 4096
_PORT_TAKEN = 3

_log = logging.getLogger(__name__)


async def serve(
    state: RouterState, release: ReleaseRow, logs: Path, supervisor: Supervisor, lock: RouterLock
) -> None:
    """Serve the release until it is stopped, gone or handed over."""
    balancer: Balancer[Upstream] = Balancer()
    few = resource.getrlimit(resource.RLIMIT_NOFILE)[0] < _FEW_DESCRIPTORS
    async with make_session(keep=not few) as session:
        around = Surroundings(
            release=release,
            state=state,
            logs=logs,
            environment=dict(os.environ),
            healthy=partial(_healthy, session),
        )
        own: Balancer[Upstream] = Balancer()
        reconciler = Reconciler(around, balancer, own)
        application = web.Application()
        only_own = Proxy(release.name, own, session, under=OWN_PATH)
        application.router.add_route("*", OWN_PATH + "/{path:.*}", only_own.handle)
        everything = Proxy(release.name, balancer, session, others=own)
        application.router.add_route("*", "/{path:.*}", everything.handle)
        runner = web.AppRunner(
            application,
            access_log=None,
            # Without this a request whose client is gone would go on at the replica.
            handler_cancellation=True,
            shutdown_timeout=release.drain_seconds,
        )
        application.middlewares.append(_within_descriptors(release.name, runner))
        await runner.setup()
        site = await _listen(runner, release.port)
        work = asyncio.create_task(reconciler.run())
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, reconciler.stop)
        loop.add_signal_handler(signal.SIGHUP, work.cancel)

        def unsupervised() -> None:
            loop.remove_reader(supervisor.fileno())
            work.cancel()

        loop.add_reader(supervisor.fileno(), unsupervised)
        # Last: who reads this may send signals.
        await state.set_router(supervisor.identity)
        supervisor.serving()
        try:
            await work
        except asyncio.CancelledError:
            _log.info("handing over")
        finally:
            loop.remove_reader(supervisor.fileno())
            # The port and the lock first: the next router can serve while this one finishes.
            await site.stop()
            with suppress(UnreachableError):
                await state.flush()
                await state.set_router(None)
            lock.release()
            await runner.cleanup()


def _within_descriptors(release: str, runner: web.AppRunner) -> Middleware:
    """Refuses requests for which no descriptor is left: each takes one here, one at the replica."""
    open_requests = 0

    @web.middleware
    async def admitted(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal open_requests
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = limit - min(_RESERVED_DESCRIPTORS, limit // 2)
        connections = len(runner.server.connections) if runner.server else 0
        if limit != resource.RLIM_INFINITY and connections + open_requests >= room:
            refusal = unavailable(
                f"{release}: {open_requests} requests are open, and this machine lets its router "
                f"have {limit} descriptors: raise its hard limit (ulimit -Hn)"
            )
            refusal.force_close()
            return refusal
        open_requests += 1
        try:
            return await handler(request)
        finally:
            open_requests -= 1

    return admitted


class _PortTakenError(Exception):
    """Another program listens on the release's port."""


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
    try:
        return await again(bound)
    except OSError as error:
        raise _PortTakenError(
            f"its port {port} of {LOOPBACK} cannot be had{_listener(port)}: end what has it, or "
            "remove the release and deploy it again, on another port"
        ) from error


def _listener(port: int) -> str:
    """Return who listens on the port, as far as this user may know."""
    with suppress(psutil.Error, OSError):
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr[1:] == (port,) and each.pid:
                return f", process {each.pid} ({psutil.Process(each.pid).name()}) listens there"
    return ""


async def _healthy(session: aiohttp.ClientSession, url: str) -> bool | None:
    try:
        timeout = aiohttp.ClientTimeout(total=_PROBE_TIMEOUT_SECONDS)
        async with session.get(f"{url}/health", timeout=timeout) as answer:
            return answer.status == HTTPStatus.OK
    except OSError as error:
        return None if error.errno in OUT_OF_DESCRIPTORS else False
    except (aiohttp.ClientError, TimeoutError):
        return False


def _raise_limit() -> None:
    """Take all the descriptors that the machine gives: most give 1,024 unless asked for more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _serve_release(state_dir: Path, name: str, supervisor: Supervisor) -> int:
    lock = RouterLock(state_dir, name)
    if not lock.take(within_seconds=_LOCK_SECONDS):
        _log.error("another router serves %s", name)
        return REFUSED
    # What the router writes it would find out again, so it need not wait for the disk.
    state = open_state(state_dir, durable=False)
    release = state.release(name)
    if release is None:
        _log.error("there is no release %s", name)
        return REFUSED
    # Whoever waits for a router does not wait for one that died, or does not come up.
    state.set_router(name, None)

    async def served() -> None:
        await serve(
            RouterState(state, name), release, log_folder(state_dir, name), supervisor, lock
        )

    try:
        uvloop.run(served())
    except _PortTakenError as error:
        _log.error("%s", error)
        return _PORT_TAKEN
    return DONE


def main() -> int:
    """Run the router; 1 when it could not begin to serve the release."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--release", required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    _raise_limit()
    supervisor = Supervisor(arguments.state, arguments.release)
    return supervisor.run(partial(_serve_release, arguments.state, arguments.release))


if __name__ == "__main__":
    sys.exit(main())
