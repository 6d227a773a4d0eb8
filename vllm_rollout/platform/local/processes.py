"""Start, recognise and end the processes of this platform, each by its own identity.

A router is known by its process id and start time. A replica and whatever it forks carry the
replica's id in their environment, so they are found even if whoever started them was killed before
it could write their process ids down. Nothing is ever ended by name.

Their log files are here too: where they are, their last lines, their size.
"""

import atexit
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from vllm_rollout.model.errors import DeployError

REPLICA_VARIABLE = "VLLM_ROLLOUT_REPLICA"

# vLLM renames its processes (setproctitle), which by default overwrites the environment that
# /proc shows; with this set it leaves the environment readable.
MARKS_STAY_READABLE = {"SPT_NOENV": "1"}

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_START_FIELD = 19
"""Of /proc/<pid>/stat behind the command's name: start in clock ticks since boot, see proc(5)."""

_KILL_SECONDS = 10.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Identity:
    """One process and no later one with the same id: `created` is when it started, in seconds."""

    pid: int
    created: float


# Kept so that a child that ended is reaped and can be asked how it ended.
_children: dict[Identity, subprocess.Popen[bytes]] = {}


@atexit.register
def _let_go() -> None:
    # A router outlives the command that started it, which subprocess would warn about.
    for child in _children.values():
        child.returncode = 0


def _started(process: psutil.Process) -> float:
    """Return the start time in seconds since boot (from /proc), immune to clock changes.

    Raises:
        psutil.NoSuchProcess: it is gone.
    """
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return process.create_time()
    return int(stat.rpartition(")")[2].split()[_START_FIELD]) / _TICKS_PER_SECOND


def current() -> Identity:
    """This process."""
    me = psutil.Process()
    return Identity(me.pid, _started(me))


def spawn(argv: Sequence[str], *, env: Mapping[str, str], log: Path) -> Identity:
    """Start `argv` in a session of its own, its output appended to `log`.

    Raises:
        OSError: the program cannot be run.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(  # noqa: S603 - the release's own command, no shell
            argv,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # Not reaped yet, so even a child that has already ended still has its start time.
    identity = Identity(child.pid, _started(psutil.Process(child.pid)))
    _children[identity] = child
    return identity


def how_ended(identity: Identity) -> str | None:
    """None while the process runs; else how it ended, as far as its parent can know."""
    child = _children.get(identity)
    if child is None:
        return None if _find(identity) is not None else "ended"
    # A child's parent alone is asked: it could end between two questions, and its code be lost.
    code = child.poll()
    if code is None:
        return None
    return f"exited with code {code}" if code >= 0 else f"killed by signal {-code}"


def is_running(identity: Identity | None) -> bool:
    """Return True if there is an identity and its process runs."""
    return identity is not None and how_ended(identity) is None


def _find(identity: Identity) -> psutil.Process | None:
    try:
        process = psutil.Process(identity.pid)
        same = _started(process) == identity.created
    except psutil.NoSuchProcess:
        return None
    return process if same and _lives(process) else None


def _lives(process: psutil.Process) -> bool:
    # An orphan's zombie is not reaped where a container's first process does not care to.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait for the processes to end; return those that have not after `seconds`."""
    deadline = time.monotonic() + seconds
    while alive := [process for process in processes if _lives(process)]:
        if time.monotonic() >= deadline:
            break
        time.sleep(_POLL_SECONDS)
    for child in list(_children.values()):
        child.poll()  # reaps
    return alive


def end_process(identity: Identity, *, grace_seconds: float) -> None:
    """SIGTERM, and SIGKILL after `grace_seconds`; returns when the process is gone.

    Raises:
        DeployError: it is still there.
    """
    process = _find(identity)
    if process is not None:
        _signal([process], signal.SIGTERM)
        _kill(_wait([process], grace_seconds), f"process {identity.pid}")


def carrying(replica_id: str) -> list[psutil.Process]:
    """Every process of this user that carries the replica's id in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(REPLICA_VARIABLE) == replica_id:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or another user's
    return found


def end_replica(replica_id: str, *, grace_seconds: float) -> None:
    """End every process of the replica; returns when none is left.

    The first process is asked (SIGTERM) and has `grace_seconds` to end; what it leaves behind is
    killed, as in a container.

    Raises:
        DeployError: one is still there.
    """
    members = carrying(replica_id)
    pids = {process.pid for process in members}
    first = [process for process in members if _parent(process) not in pids]
    _signal(first, signal.SIGTERM)
    _wait(first, grace_seconds)
    deadline = time.monotonic() + _KILL_SECONDS
    while members := carrying(replica_id):
        # Asked again each time: what is being killed may fork once more.
        _kill(members, f"replica {replica_id}")
        if time.monotonic() > deadline:
            raise DeployError(
                f"replica {replica_id} keeps starting processes while it is being ended",
                remedy=f"Check process {members[0].pid}.",
            )


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return 0


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _kill(processes: Sequence[psutil.Process], what: str) -> None:
    _signal(processes, signal.SIGKILL)
    if stuck := _wait(processes, _KILL_SECONDS):
        raise DeployError(
            f"{what}: process {stuck[0].pid} does not end",
            remedy="It may be stuck in the kernel (a device or a network disk); check it.",
        )


_ROOM_BYTES = 1_000_000
_MAX_BYTES = 10_000_000
_TAIL_BYTES = 256_000
_KEPT_FILES = 40


def log_folder(state_dir: Path, release: str) -> Path:
    """Return the folder of a release's logs."""
    return state_dir / "logs" / release


def has_room(folder: Path) -> bool:
    """Return False if the disk of an existing folder is full."""
    try:
        return shutil.disk_usage(folder).free >= _ROOM_BYTES
    except OSError:
        return True


def tail(path: Path, lines: int, *, since: int = 0) -> list[str]:
    """The last `lines` lines of what follows the byte `since`; none when there is no file."""
    if lines <= 0 or not path.is_file():
        return []
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES, min(since, size)))
        text = file.read().decode(errors="replace")
    return text.splitlines()[-lines:]


def trim(folder: Path, *, live: Collection[Path]) -> None:
    """Cut each log that has grown too large (one older part is kept); drop the oldest dead ones."""
    for path in folder.glob("*.log"):
        if path.stat().st_size > _MAX_BYTES:
            older = path.with_suffix(".log.1")
            try:
                shutil.copyfile(path, older)
            except OSError:  # a full disk needs the room more than anybody the older part
                older.unlink(missing_ok=True)
            # Its process keeps the file open for appending and goes on at the new end.
            os.truncate(path, 0)
    dead = sorted(set(folder.iterdir()) - set(live), key=lambda path: path.stat().st_mtime)
    for path in dead[:-_KEPT_FILES]:
        path.unlink()
