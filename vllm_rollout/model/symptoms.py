"""Facts about replicas that do not serve, without an opinion on the cause."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from vllm_rollout.model.deployment import Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRoom:
    """Room for a resource on a node: allocatable and requested.

    `refused` says why the replica may not run there whatever the room (a taint, a selector).
    """

    node: str
    allocatable: float
    requested: float
    refused: str = ""

    @property
    def free(self) -> float:
        """Resources left."""
        return self.allocatable - self.requested


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupProbe:
    """Start-up probe: one each `period_seconds`, of which so many may fail."""

    period_seconds: float
    failure_threshold: int
    initial_delay_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """After this the replica is given up."""
        return self.initial_delay_seconds + self.period_seconds * self.failure_threshold


class Event(NamedTuple):
    """An event, and how long ago it was seen last."""

    reason: str
    message: str
    seconds_ago: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """End of a container's process; `ran_seconds` is None where that is not known."""

    reason: str = ""
    exit_code: int | None = None
    message: str = ""
    seconds_ago: float = 0.0
    ran_seconds: float | None = None


Role = Literal["server", "sidecar", "init"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptoms:
    """Symptoms of one pod, or of one that could not be created (`replica` None).

    A pod is a replica's, another one of the release, or that of the `job` named. `container`,
    with its `role`, is the one that keeps the pod from being ready, and these are its own:
    `waiting` and `message` say why it does not run; `running_seconds` is how long it does, and
    `started` whether its start-up probe has passed; `end` is its last end, as far as that still
    matters; `log` are the last lines of what ended or runs, secrets redacted.

    `unscheduled` is what the scheduler says, `node_problem` why its node is not ready,
    `overdue_seconds` how long it should have been gone. `events` are its own, oldest first. `rooms`
    has, for the resource `scarce` that a scheduler could not find, the room of each node; empty
    when it may not be read.
    """

    replica: Replica | None
    job: str = ""
    node: str = ""
    node_problem: str = ""
    overdue_seconds: float | None = None
    unscheduled: str = ""
    container: str = ""
    role: Role = "server"
    waiting: str = ""
    message: str = ""
    running_seconds: float | None = None
    started: bool = False
    restarts: int = 0
    end: End | None = None
    startup_probe: StartupProbe | None = None
    requests: Mapping[str, float] = field(default_factory=dict)
    scarce: str = ""
    rooms: tuple[NodeRoom, ...] = ()
    events: tuple[Event, ...] = ()
    log: str = ""
