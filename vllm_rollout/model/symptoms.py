"""Facts about replicas that do not serve, without an opinion on the cause."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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

    @property
    def seconds(self) -> float:
        """After this the replica is given up."""
        return self.period_seconds * self.failure_threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptoms:
    """Symptoms of one replica, or of one that could not be created (`replica` None).

    `events` are (reason, message), oldest first; `ended` and `exit_code` describe its last end;
    `log` are the last lines of what ran last, secrets redacted. `rooms` has, for the resource
    `scarce` that a scheduler could not find, the room of each node; empty when it may not be read.
    """

    replica: Replica | None
    node: str = ""
    ended: str = ""
    exit_code: int | None = None
    startup_probe: StartupProbe | None = None
    requests: Mapping[str, float] = field(default_factory=dict)
    scarce: str = ""
    rooms: tuple[NodeRoom, ...] = ()
    events: tuple[tuple[str, str], ...] = ()
    log: str = ""
