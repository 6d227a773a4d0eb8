"""What becomes of a pod once it is on a node: the states that a real kubelet would report."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

CRASH_BACK_OFF = "back-off 5m0s restarting failed container"


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How a pod's container behaves; the default starts and is ready.

    `waiting` is why it never starts, `exit_code` with what it always ends; `restarts` is how often
    it was restarted until now. `probe` fails the named probe for good. `serves` are the dials of a
    simulator that really answers for the pod; None runs nothing. With `names` the pod's command
    really runs, as a process here, which finds each of these addresses at another one; `exited` is
    with what it ended.
    """

    waiting: str = ""
    message: str = ""
    exit_code: int | None = None
    ended: str = "Error"
    restarts: int = 0
    probe: str = ""
    log: str = ""
    previous_log: str = ""
    serves: Mapping[str, Any] | None = field(default=None)
    names: Mapping[str, str] | None = field(default=None)
    exited: int | None = None
    tagged: str = ""
    """What the tag of its image stands for: after another behaviour with another, it has moved."""

    @property
    def ready(self) -> bool:
        """Whether the container comes up and stays."""
        ended = self.exit_code is not None or self.exited is not None
        return not self.waiting and not ended and not self.probe

    def serving(self, **dials: Any) -> "Behaviour":
        """The same, answered for by a simulator with these dials."""
        return replace(self, serves=dials)


HEALTHY = Behaviour()


def running(names: Mapping[str, str] | None = None) -> Behaviour:
    """The pod's command really runs, as a process on this machine."""
    return Behaviour(names=names or {})


def image_pull(image: str, reason: str = "not found") -> Behaviour:
    """The registry has no such image, or does not give it."""
    return Behaviour(
        waiting="ImagePullBackOff",
        message=f'Back-off pulling image "{image}": ErrImagePull: rpc error: code = NotFound desc '
        f'= failed to pull and unpack image "{image}": {reason}',
    )


def crash_loop(log: str, *, exit_code: int = 1, restarts: int = 4) -> Behaviour:
    """The process ends soon after every start."""
    return Behaviour(exit_code=exit_code, restarts=restarts, previous_log=log)


def out_of_memory(*, restarts: int = 2) -> Behaviour:
    """The kernel kills the process at the memory limit."""
    return Behaviour(exit_code=137, ended="OOMKilled", restarts=restarts, previous_log="Killed\n")


def slow_start(*, restarts: int = 1) -> Behaviour:
    """The model loads for longer than the start-up probe waits."""
    return Behaviour(
        probe="Startup",
        restarts=restarts,
        log="INFO Loading safetensors checkpoint shards: 40% Completed\n",
    )


def unready() -> Behaviour:
    """The server runs and its readiness probe fails."""
    return Behaviour(probe="Readiness", log="ERROR engine is dead\n")
