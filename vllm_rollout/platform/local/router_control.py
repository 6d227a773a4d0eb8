"""Control of routers: find, start, restart, and stop one with all it runs; its lock and logs.

A router's process, here, is the one that was started: it starts the one that serves (`router.py`).
One router runs for each release: a file lock holds that, which the kernel gives back however its
holder ends.
"""

import fcntl
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import psutil

from vllm_rollout.model.errors import DeployError
from vllm_rollout.model.text import redact
from vllm_rollout.platform.local import processes
from vllm_rollout.platform.local.database import SCHEMA_VERSION
from vllm_rollout.platform.local.processes import Identity, log_folder, tail
from vllm_rollout.platform.local.state import ReplicaRow, State

_POLL_SECONDS = 0.02

_log = logging.getLogger(__name__)


class RouterLock:
    """Held by a release's router for its life, and by whoever makes sure that there is none."""

    def __init__(self, state_dir: Path, release: str) -> None:
        folder = state_dir / "locks"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = (folder / f"{release}.lock").open("w")

    def take(self, *, within_seconds: float) -> bool:
        """Take the lock; False when someone else still has it after so long."""
        deadline = time.monotonic() + within_seconds
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(_POLL_SECONDS)
            else:
                return True

    def release(self) -> None:
        """Give it back."""
        self._file.close()


Serve = Callable[["Supervisor"], int]
DONE, REFUSED, _CRASHED = 0, 1, 70
"""Exit statuses of a process that serves; after any other one it is started again."""
_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 30.0
_GOOD_SECONDS = 60.0


class Supervisor:
    """The process that starts the one that serves: `identity`, and a line to it from there."""

    def __init__(self, state_dir: Path, release: str) -> None:
        self.identity: Identity = processes.current()
        # The state file names it only while the release is served; one to be stopped is found here.
        with suppress(OSError):
            note = _supervisor_note(state_dir, release)
            note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            note.write_text(json.dumps(asdict(self.identity)))
        self._here, self._there = socket.socketpair()
        self._here.setblocking(False)

    def fileno(self) -> int:
        """In the process that serves: readable when the supervisor has ended."""
        return self._there.fileno()

    def serving(self) -> None:
        """Tell the supervisor that the release is served."""
        self._there.send(b"1")

    def run(self, serve_release: Serve) -> int:
        """Run `serve_release` in a child, again whenever it dies and has ever served.

        Returns the exit status of a child that ended by itself, or by a signal that was passed on.
        """
        child, ending = 0, False

        def pass_on(number: int, _frame: object) -> None:
            nonlocal ending
            ending = True
            if not child:
                sys.exit(DONE)
            with suppress(ProcessLookupError):
                os.kill(child, number)

        signals = (signal.SIGTERM, signal.SIGHUP)
        for each in signals:
            signal.signal(each, pass_on)
        served, pause = False, _PAUSE_SECONDS
        while True:
            began = time.monotonic()
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)
            child = os.fork()
            if not child:
                os._exit(self._serve(serve_release, signals))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            child = 0
            with suppress(BlockingIOError):
                served = bool(self._here.recv(1024)) or served
            if ending or not served or status in (DONE, REFUSED):
                return max(status, 0)
            long = time.monotonic() - began > _GOOD_SECONDS
            pause = _PAUSE_SECONDS if long else min(pause * 2, _LONGEST_PAUSE_SECONDS)
            _log.error("the router ended (%d); started again in %g s", status, pause)
            time.sleep(pause)

    def _serve(self, serve_release: Serve, signals: tuple[signal.Signals, ...]) -> int:
        self._here.close()
        for each in signals:
            signal.signal(each, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        try:
            return serve_release(self)
        except BaseException:  # noqa: BLE001 - it is in the log, and the supervisor starts another
            _log.exception("the router ends")
            return _CRASHED


_VERSION = {"VLLM_ROLLOUT_ROUTER": str(SCHEMA_VERSION)}
"""In a router's environment: another version may not keep to all that the state file says."""
_START_SECONDS = 30.0
_REPLICA_GRACE_SECONDS = 5.0
_LOCK_SECONDS = 10.0
_LOG_LINES = 5


class Routers:
    """The router processes of one state directory."""

    def __init__(self, state_dir: Path, state: State) -> None:
        self._state_dir = state_dir
        self._state = state

    def running(self, name: str) -> Identity | None:
        """The release's router, if it runs."""
        release = self._state.release(name)
        router = None if release is None else release.router
        return router if processes.is_running(router) else None

    def environment(self, name: str) -> dict[str, str]:
        """The environment the release's router was started in; empty when there is none."""
        router = self.running(name)
        try:
            return {} if router is None else psutil.Process(router.pid).environ()
        except psutil.Error:
            return {}

    def ensure(self, name: str, *, secrets: Collection[str] = ()) -> bool:
        """See to it that a router runs; return whether one had to be started.

        A router that has another value of one of `secrets` than this process hands over to a new
        one: replicas are started with what their router has. So does one of a version that knows
        another schema. The replicas there are stay.

        Raises:
            DeployError: it does not come up; the message has the last lines of its log.
        """
        env = dict(os.environ)
        if (router := self.running(name)) is not None:
            theirs = self.environment(name)
            ours = {secret: os.environ[secret] for secret in secrets if secret in os.environ}
            if (_VERSION | ours).items() <= theirs.items() or not theirs:
                return False
            # What this command does not have, the replicas still need.
            env = {secret: theirs[secret] for secret in secrets if secret in theirs} | env
            with suppress(ProcessLookupError):
                os.kill(router.pid, signal.SIGHUP)
        log = log_folder(self._state_dir, name) / "router.log"
        before = log.stat().st_size if log.is_file() else 0
        started = processes.spawn(
            [
                # -P: nothing in the folder the command was called from stands in for a module.
                *(sys.executable, "-P", "-m", "vllm_rollout.platform.local.router"),
                *("--state", str(self._state_dir), "--release", name),
            ],
            env=env | _VERSION,
            log=log,
        )
        deadline = time.monotonic() + _START_SECONDS
        while (now := self.running(name)) is None or now == router:
            # Ours may have ended because another command started one at the same moment.
            if not processes.is_running(started) and self.running(name) is None:
                break
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS)
        else:
            return True
        raise DeployError(
            "\n".join(
                [f"the router of {name} does not start:", *tail(log, _LOG_LINES, since=before)]
            ),
            remedy=f"Its whole log is {log}.",
        )

    def stop(self, name: str, *, timeout: timedelta, forget: bool) -> None:
        """End the release's router and replicas; with `forget`, the release is removed as well.

        The router gets `timeout` to let open requests finish.

        Raises:
            DeployError: a process does not end, or another command keeps starting routers.
        """
        for router in (self.running(name), self._supervisor(name)):
            if router is not None:
                processes.end_process(router, grace_seconds=timeout.total_seconds())
        lock = RouterLock(self._state_dir, name)
        try:
            if not lock.take(within_seconds=_LOCK_SECONDS):
                raise DeployError(
                    f"another router of {name} was started meanwhile",
                    remedy="See which other command works on this release, and run this again.",
                )
            for replica in self._state.replicas(name):
                processes.end_replica(replica.id, grace_seconds=_REPLICA_GRACE_SECONDS)
                self._state.delete_replica(replica.id)
            self._state.set_router(name, None)
            if forget:
                self._state.delete_release(name)
        finally:
            lock.release()

    def _supervisor(self, name: str) -> Identity | None:
        with suppress(OSError, ValueError, TypeError):
            return Identity(**json.loads(_supervisor_note(self._state_dir, name).read_text()))
        return None


def _supervisor_note(state_dir: Path, release: str) -> Path:
    return state_dir / "locks" / f"{release}.json"


class ReleaseLogs:
    """Reads the logs of one state directory's replicas."""

    def __init__(self, state_dir: Path, state: State, routers: Routers) -> None:
        self._state_dir = state_dir
        self._state = state
        self._routers = routers

    def read(self, replica: ReplicaRow, *, lines: int) -> str:
        """The last lines of one replica under a heading.

        Where the value of a secret it was given is not known here, nothing is shown: it could not
        be struck out.
        """
        return f"==> {replica.name} <==\n{self._redacted(replica, lines)}"

    def _redacted(self, replica: ReplicaRow, lines: int) -> str:
        revision = self._state.revision(replica.release, replica.revision)
        names = [] if revision is None else revision.values.get("secrets", [])
        sources = (self._routers.environment(replica.release), os.environ)
        hidden: set[str] = set()
        for name in names:
            known = {source[name] for source in sources if source.get(name)}
            if not known:
                return f"(withheld: without {name} in the environment it cannot be struck out)"
            hidden |= known
        path = log_folder(self._state_dir, replica.release) / f"{replica.name}.log"
        return redact("\n".join(tail(path, lines)), hidden)
